"""DeepSeek V2, V3, R1 and Kimi K2: latent attention, and experts beside one that all rows share."""

from __future__ import annotations

import math
from dataclasses import replace

from ikpy_llm.engine.graph import Graph, Value
from ikpy_llm.engine.params import Params
from ikpy_llm.engine.rope import Angles
from ikpy_llm.models.blocks import angles, embed, ffn, head, moe
from ikpy_llm.models.mla import attention


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    turns, scale = rotation(p)
    for i in g.layers(p.n_layer):
        x = g.add(x, attention(g, p, g.norm(x, "attn_norm", p.eps), turns, scale))
        h = g.norm(x, "ffn_norm", p.eps)
        if i < p.n_dense:
            x = g.add(x, ffn(g, p, h))
            continue
        x = g.add(x, experts(g, p, h))
        if p.n_expert_shared:
            x = g.add(x, ffn(g, p, h, n_ff=p.n_ff_expert * p.n_expert_shared, suffix="_shexp"))
    return head(g, p, x)


def experts(g: Graph, p: Params, x: Value) -> Value:
    """The chosen experts: by softmax (V2) or by sigmoid with a bias (V3)."""
    p.only("expert_gating", 0, 1, 2)
    gating, bias = "sigmoid" if p.expert_gating == 2 else "softmax", "exp_probs_b" if g.has("exp_probs_b.bias") else ""
    return moe(g, p, x, norm=p.expert_norm, gating=gating, scale=p.expert_scale or 1.0, bias=bias)


def rotation(p: Params) -> tuple[Angles, float]:
    """Angles, and the scale of q k^T. What yarn would make of the angles' size goes into the scale instead: the part of
    q and k that does not turn needs it as well.
    """
    turns, scale = angles(p), p.k_dim_mla**-0.5
    if turns.yarn is None or not turns.yarn.mix:
        return turns, scale
    log = math.log(turns.factor)
    grown = turns.scale * (1 + p.yarn_log_mul * log)
    return replace(turns, scale=1 / (1 + 0.1 * log)), scale * grown**2
