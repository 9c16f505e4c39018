"""Qwen3: as qwen2, with norms on the heads of q and k in place of biases."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks import attention, embed, ffn, head


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    for _ in g.layers(p.n_layer):
        x = g.add(x, attention(g, p, g.norm(x, "attn_norm", p.eps), rope="neox", qk_norm=True))
        x = g.add(x, ffn(g, p, g.norm(x, "ffn_norm", p.eps)))
    return head(g, p, x)
