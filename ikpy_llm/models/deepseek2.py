"""DeepSeek V2, V3, R1, Kimi K2 and what shares their wiring (GLM-4.7-Flash, Youtu-LLM): latent attention, and experts
beside one that all rows share.
"""

from __future__ import annotations

from dataclasses import replace

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.graph.rope import Angles, growth
from ikpy_llm.models.blocks import angles, attn_factor, embed, ffn, head, latent_attention, moe


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    turns, scale = rotation(p)
    for i in g.layers(p.n_layer):
        x = g.add(x, latent_attention(g, p, g.norm(x, "attn_norm", p.eps), turns, scale))
        h = g.norm(x, "ffn_norm", p.eps)
        if i < p.n_dense or not p.n_expert:
            x = g.add(x, ffn(g, p, h))
            continue
        x = g.add(x, moe(g, p, h, sigmoid=True))
        if p.n_expert_shared:
            x = g.add(x, ffn(g, p, h, n_ff=p.n_ff_expert * p.n_expert_shared, suffix="_shexp"))
    return head(g, p, x)


def rotation(p: Params) -> tuple[Angles, float]:
    """Angles, and the scale of q k^T. The file has mscale_all_dim of DeepSeek's configuration, not mscale, and every
    model published with both has them equal: then nothing is left by which the angles grow, and the scale grows
    instead, as the part of q and k that does not turn needs it as well. Without it, yarn is what it is elsewhere.
    """
    turns, scale = angles(p), p.k_dim_mla**-0.5
    if turns.yarn is None or not turns.yarn.mix or not p.yarn_log_mul:
        return turns, scale
    if attn_factor(p) is None:
        turns = replace(turns, scale=1 / growth(turns.factor))
    return turns, scale * growth(turns.factor, p.yarn_log_mul) ** 2
