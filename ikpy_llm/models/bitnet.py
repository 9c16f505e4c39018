"""BitNet b1.58: ternary weights, norms before the last matrix of each block."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks import attention, embed, ffn, head


def build(g: Graph, p: Params, act: str = "silu") -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    for _ in g.layers(p.n_layer):
        x = g.add(x, attention(g, p, g.norm(x, "attn_norm", p.eps), rope="neox", sub_norm="attn_sub_norm"))
        x = g.add(x, ffn(g, p, g.norm(x, "ffn_norm", p.eps), act=act, sub_norm="ffn_sub_norm"))
    return head(g, p, x)
