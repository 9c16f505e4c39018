"""Qwen1.5-MoE and Qwen2 with experts: an expert that all rows share is weighted by a gate of its own."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks import attention, embed, ffn, head, moe


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    for _ in g.layers(p.n_layer):
        x = g.add(x, attention(g, p, g.norm(x, "attn_norm", p.eps), rope="neox"))
        h = g.norm(x, "ffn_norm", p.eps)
        shared = ffn(g, p, h, n_ff=p.n_ff_shared, suffix="_shexp")
        gate = g.linear(h, "ffn_gate_inp_shexp", 1)
        x = g.add(g.add(x, moe(g, p, h, norm=False)), g.weighted(shared, gate))
    return head(g, p, x)
