"""Qwen3 with experts in every layer: the chosen ones' probabilities are scaled to a sum of one."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks import attention, embed, head, moe


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    for _ in g.layers(p.n_layer):
        x = g.add(x, attention(g, p, g.norm(x, "attn_norm", p.eps), rope="neox", qk_norm=True))
        x = g.add(x, moe(g, p, g.norm(x, "ffn_norm", p.eps), norm=True))
    return head(g, p, x)
