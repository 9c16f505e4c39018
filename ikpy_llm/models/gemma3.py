"""Gemma 3: norms before and after each block and on q and k, GeGLU; five layers of six see only a sliding window."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.graph.rope import Angles
from ikpy_llm.models.blocks import angles, attention, embed, ffn, head

PERIOD = 6  # the last of so many layers sees everything
LAYERS_27B = 62  # of the one size whose q is not scaled by the size of its heads


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    far, near = angles(p), Angles(p.n_rot, p.rope_base_window)
    x = embed(g, p, scale=p.n_embd**0.5)
    local = windows(p)
    for i in g.layers(p.n_layer):
        turns, window = (near, p.window) if local[i] else (far, 0)
        h = g.norm(x, "attn_norm", p.eps)
        h = attention(g, p, h, rope="neox", turns=turns, scale=scale(p), window=window, qk_norm=True)
        x = g.add(x, g.norm(h, "post_attention_norm", p.eps))
        h = ffn(g, p, g.norm(x, "ffn_norm", p.eps), act="gelu")
        x = g.add(x, g.norm(h, "post_ffw_norm", p.eps))
    return head(g, p, x)


def windows(p: Params) -> list[bool]:
    """Which layers see only the window."""
    if not p.window:
        return [False] * p.n_layer
    pattern = p.layers("attention.sliding_window_pattern", PERIOD)
    if isinstance(pattern, list):
        return [bool(x) for x in pattern]
    if isinstance(pattern, bool) or not isinstance(pattern, int) or pattern < 1:
        raise p.refused("attention.sliding_window_pattern", "1 or more, or a list of one per layer")
    return [i % pattern < pattern - 1 for i in range(p.n_layer)]


def scale(p: Params) -> float:
    """Of q k^T. The file need not say it; as in llama.cpp the number of layers tells the one model that differs."""
    width = p.divided("n_embd", "n_head") if p.n_layer == LAYERS_27B else p.head_dim
    return p.attention_scale or width**-0.5
