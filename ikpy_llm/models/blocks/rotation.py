"""Rotary embedding as the metadata has it: angles, and ways to stretch the context."""

from __future__ import annotations

import math

from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.graph.rope import Angles, Yarn, growth


def angles(p: Params, freqs: str = "") -> Angles:
    """How q and k are rotated; ways to stretch the context that we do not know are refused."""
    p.only("rope_scaling", "none", "linear", "yarn")
    factor = p.rope_factor or p.rope_scale_linear or 1.0
    given = attn_factor(p)
    if p.rope_scaling != "yarn":
        return Angles(p.n_rot, p.rope_base, 1.0 if p.rope_scaling == "none" else factor, freqs, given or 1.0)
    mix = p.yarn_mix if p.yarn_mix >= 0 else 1.0
    scale = (given / growth(factor) if mix else given) if given else 1.0  # in place of yarn's own growth
    return Angles(p.n_rot, p.rope_base, factor, freqs, scale, Yarn(p.rope_n_ctx, p.yarn_fast, p.yarn_slow, mix))


def attn_factor(p: Params) -> float | None:
    """The factor of q and k that the file states, under either of its names; None where it states none."""
    given = [factor for factor in (p.rope_attn_factor, p.yarn_attn_factor) if factor is not None]
    return math.prod(given) if given else None
