"""Multi-head latent attention: keys and values of all heads are made of one short row per position.

    c, pe = W_a x               kv_lora_rank columns, normed, and n_rot that all heads share, rotated
    k_h = [K_h c, pe], v_h = V_h c, with K_h and V_h the two parts of head h in attn_kv_b

q_h k_h = (K_h^T q_h) c + ...: one can expand c to k and v (`expand`), or multiply q by K^T and the result by V
(`absorb`).
"""

from __future__ import annotations

import math

from ikpy_llm.engine.graph import latents
from ikpy_llm.engine.graph.graph import PART, Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.graph.rope import Angles
from ikpy_llm.kernels.kv.types import MAX_HEAD

STYLE, UNIT = "norm", 16


def latent_attention(g: Graph, p: Params, x: Value, turns: Angles, scale: float) -> Value:
    """By g.options.mla: 0 = expanded keys and values are cached, 1 = latents are cached and q is multiplied, 2 = the
    cached latents are expanded, 3 = prompts as 2, single tokens as 1.
    """
    _check(p)
    mode, n_rot, k_dim, v_dim, rank = g.options.mla, p.n_rot, p.k_dim_mla, p.v_dim_mla, p.kv_rank
    latents.weights(g, p, expand=mode != 1, absorb=mode in (1, 3))
    q = (
        g.linear(g.norm(g.linear(x, "attn_q_a", p.q_rank), "attn_q_a_norm", p.eps), "attn_q_b", p.n_head * k_dim)
        if p.q_rank
        else g.linear(x, "attn_q", p.n_head * k_dim)
    )
    c, pe = g.parts(x, "attn_kv_a_mqa", (rank, n_rot))
    if mode == 0:
        kv = g.linear(g.norm(c, "attn_kv_a_norm", p.eps), "attn_kv_b", p.n_head * (k_dim - n_rot + v_dim))
        g.expand(kv, g.rope(pe, 1, STYLE, turns), p.n_head, k_dim - n_rot, v_dim, n_rot, keep=True)
        y = g.attend(g.rope_part(q, q, p.n_head, STYLE, turns), p.n_head, p.n_head, v_dim, scale)
    else:
        g.latent_store(c, pe, "attn_kv_a_norm", p.n_head, p.eps, STYLE, turns)
        way = absorb if mode == 1 or (mode == 3 and g.token) else expand
        y = way(g, p, q, turns, scale)
    return g.linear(y, "attn_output", p.n_embd)


def absorb(g: Graph, p: Params, q: Value, turns: Angles, scale: float) -> Value:
    """Attention over the latents themselves: q times K^T before, V after."""
    wide = g.per_head(q, "attn_k_b", p.n_head, p.kv_rank, p.k_dim_mla - p.n_rot, p.kv_rank + p.n_rot)
    q = g.rope_part(q, wide, p.n_head, STYLE, turns)
    y = g.attend(q, p.n_head, 1, p.kv_rank, scale, latent=True)
    return g.per_head(y, "attn_v_b", p.n_head, p.v_dim_mla, p.kv_rank)


def expand(g: Graph, p: Params, q: Value, turns: Angles, scale: float) -> Value:
    """Keys and values of all positions are made for this step, for as many heads at a time as g.options.amb allows."""
    n_rot, v_dim, nope = p.n_rot, p.v_dim_mla, p.k_dim_mla - p.n_rot
    q = g.rope_part(q, q, p.n_head, STYLE, turns)
    c, pe = (g.latents(*part, p.kv_rank + n_rot) for part in ((p.kv_rank, 0), (n_rot, p.kv_rank)))
    one_head = g.n_ctx * (4 * (nope + v_dim) + 2 * (nope + n_rot + v_dim))  # bytes: f32 product, f16 keys and values
    width, y = nope + v_dim, None
    step = PART // math.gcd(PART, width)  # heads whose rows end where a panel may end
    at_once = max(1, (g.options.amb << 20) // one_head // step) * step if g.options.amb else p.n_head
    for first in range(0, p.n_head, at_once):
        n = min(at_once, p.n_head - first)
        kv = g.linear(c, "attn_kv_b", n * width, (first * width, p.n_head * width))
        k, v = g.expand(kv, pe, n, nope, v_dim, n_rot, keep=False)
        y = g.attend_to(q, k, v, y, (first, n, p.n_head), v_dim, scale)
    return y


def _check(p: Params) -> None:
    """Sizes the kernels can run."""
    p.only("n_head_kv", 1, p.n_head)
    if p.n_rot % 2 or not 0 < p.n_rot <= 256 or p.n_rot >= p.k_dim_mla:
        raise p.refused("rope.dimension_count", "an even number up to 256 that leaves some of the key's columns")
    if p.kv_rank % UNIT:
        raise p.refused("attention.kv_lora_rank", f"multiples of {UNIT}")
    if p.kv_rank + p.n_rot > MAX_HEAD:
        raise p.refused("attention.kv_lora_rank", f"up to {MAX_HEAD} together with rope.dimension_count")
    absorbed = p.kv_rank + p.n_rot, p.kv_rank
    if (p.head_dim, p.v_dim) not in (absorbed, (p.k_dim_mla, p.v_dim_mla)):
        raise p.refused("attention.key_length", f"{absorbed[0]} with key_length_mla, or the size of a key")
