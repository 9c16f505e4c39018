"""Grouped-query attention."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.graph.rope import Angles
from ikpy_llm.models.blocks.rotation import angles


def attention(
    g: Graph,
    p: Params,
    x: Value,
    *,
    rope: str,
    turns: Angles | None = None,
    scale: float | None = None,
    window: int = 0,
    qk_norm: bool = False,
    cap: float = 0.0,
    sub_norm: str = "",
) -> Value:
    """Grouped-query attention with (normed and) rotated q and k over the KV cache; turns: other angles than the
    file's, scale: other than head_dim ** -0.5, rope "": nothing turns, sub_norm: norm before the last matrix.
    """
    p.check_attention()
    widths = {"attn_q": p.n_head * p.head_dim, "attn_k": p.n_head_kv * p.head_dim, "attn_v": p.n_head_kv * p.v_dim}
    if g.has("attn_qkv.weight"):
        q, k, v = g.parts(x, "attn_qkv", widths.values())
    else:
        q, k, v = (g.linear(x, name, width) for name, width in widths.items())
    if qk_norm:
        q = g.head_norm(q, "attn_q_norm", p.n_head, p.eps)
        k = g.head_norm(k, "attn_k_norm", p.n_head_kv, p.eps)
    turns = turns or angles(p, g.freqs(p.n_rot))
    if rope:
        q, k = g.rope(q, p.n_head, rope, turns), g.rope(k, p.n_head_kv, rope, turns)
    g.kv_store(k, v, p.n_head_kv, window)
    y = g.attend(q, p.n_head, p.n_head_kv, p.v_dim, scale or p.head_dim**-0.5, window, cap=cap)
    return g.linear(g.norm(y, sub_norm, p.eps) if sub_norm else y, "attn_output", p.n_embd)
