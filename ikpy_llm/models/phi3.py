"""Phi-3 and Phi-4: q, k and v are one matrix, gate and up another; long contexts have frequencies of their own."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.graph.rope import Angles
from ikpy_llm.models.blocks import angles, attention, attn_factor, embed, ffn, head

SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x, turns = embed(g, p), rotation(g, p)
    for _ in g.layers(p.n_layer):
        h = g.norm(x, "attn_norm", p.eps)
        x = g.add(x, attention(g, p, h, rope="neox", turns=turns, window=p.window))
        x = g.add(x, ffn(g, p, g.norm(x, "ffn_norm", p.eps)))
    return head(g, p, x)


def rotation(g: Graph, p: Params) -> Angles:
    """The file may have two sets of divisors: which one is right depends on the length of the context (longrope)."""
    short, long = g.freqs(p.n_rot, SHORT), g.freqs(p.n_rot, LONG)
    if not long:
        return angles(p, short)
    p.only("rope_scaling", "none", "linear", "longrope")
    return Angles(p.n_rot, p.rope_base, 1.0, long if g.n_ctx > p.rope_n_ctx else short, attn_factor(p) or 1.0)
