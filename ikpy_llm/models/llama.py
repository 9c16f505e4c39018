"""LLaMA and what shares its wiring: pre-norm blocks of grouped-query attention and SwiGLU, or experts (Mixtral)."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks import attention, embed, ffn, head, moe

ROPE = "norm"  # neighbouring columns are rotated together


def build(g: Graph, p: Params, rope: str = ROPE) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    for _ in g.layers(p.n_layer):
        x = g.add(x, attention(g, p, g.norm(x, "attn_norm", p.eps), rope=rope))
        h = g.norm(x, "ffn_norm", p.eps)
        x = g.add(x, moe(g, p, h, norm=True, n_ff=p.n_ff) if p.n_expert else ffn(g, p, h))
    return head(g, p, x)
