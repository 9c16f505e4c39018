"""GLM-4 (0414): norms before and after each block; a part of each head turns; gate and up are one matrix."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks import attention, embed, ffn, head


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    for _ in g.layers(p.n_layer):
        h = attention(g, p, g.norm(x, "attn_norm", p.eps), rope="norm")
        x = g.add(x, g.norm(h, "post_attention_norm", p.eps))
        h = ffn(g, p, g.norm(x, "ffn_norm", p.eps))
        x = g.add(x, g.norm(h, "post_ffw_norm", p.eps))
    return head(g, p, x)
