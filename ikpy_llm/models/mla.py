"""Multi-head latent attention: keys and values of all heads are made of one short row per position.

    c, pe = W_a x               kv_lora_rank columns, normed, and n_rot that all heads share, rotated
    k_h = [K_h c, pe], v_h = V_h c, with K_h and V_h the two parts of head h in attn_kv_b

q_h k_h = (K_h^T q_h) c + ...: one can expand c to k and v (`expand`), or multiply q by K^T and the result by V
(`absorb`).
"""

from __future__ import annotations

import math

import numpy as np

from ikpy_llm.engine.graph.graph import PART, Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.graph.rope import Angles
from ikpy_llm.engine.step.requant import multiplied, q8_0
from ikpy_llm.errors import ModelFileError, shown
from ikpy_llm.kernels.derive.layout import file_bytes
from ikpy_llm.kernels.kv.types import MAX_HEAD

STYLE, UNIT = "norm", 16
WORDS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


def attention(g: Graph, p: Params, x: Value, turns: Angles, scale: float) -> Value:
    """By g.options.mla: 0 = expanded keys and values are cached, 1 = latents are cached and q is multiplied, 2 = the
    cached latents are expanded, 3 = prompts as 2, single tokens as 1.
    """
    _check(p)
    mode, n_rot, k_dim, v_dim, rank = g.options.mla, p.n_rot, p.k_dim_mla, p.v_dim_mla, p.kv_rank
    weights(g, p, expand=mode != 1, absorb=mode in (1, 3))
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


# ---- attn_kv_b [head][K_h, V_h][rank], or attn_k_b [head][rank][K_h^T] and attn_v_b [head][V_h][rank]
def weights(g: Graph, p: Params, expand: bool, absorb: bool) -> None:
    """Compute what the file lacks, and claim all that it has, used or not."""
    n, nope, v_dim, rank = p.n_head, p.k_dim_mla - p.n_rot, p.v_dim_mla, p.kv_rank
    shapes = {"attn_kv_b": (n * (nope + v_dim), rank), "attn_k_b": (n, rank, nope), "attn_v_b": (n, v_dim, rank)}
    have = {name: g.tensors[g.full(name + ".weight")] for name in shapes if g.has(name + ".weight")}
    for name in have:
        shape = shapes[name]
        if len(shape) == 3 and shape[0] > 1 and g.rows(name + ".weight") == shape[0] * shape[1]:
            have[name] = g.reshape(name + ".weight", shape)  # older files of ik_llama.cpp: heads one below the other
        g.claim(name + ".weight", shape, "source")
        for odd in (name + ".bias", name + ".scale"):
            if absorb and g.has(odd):
                raise ModelFileError(f"{g.file}: tensor {shown(g.full(odd))}: accepted with -mla 2 or 0 only")
    if "attn_kv_b" in have:
        kv = have["attn_kv_b"]
        if absorb:
            kind = transposed_type(kv.type_name, nope)
            shape = n, nope + v_dim, rank
            g.derive("attn_k_b.weight", kind, shapes["attn_k_b"], lambda: transposed(kv, shape, nope, kind), kv.name)
            g.derive("attn_v_b.weight", kv.type_name, shapes["attn_v_b"], lambda: last_rows(kv, shape, nope), kv.name)
    elif expand and len(have) == 2:
        k, v = have["attn_k_b"], have["attn_v_b"]
        kind = transposed_type(k.type_name if k.type_name == v.type_name else "Q8_0", rank)
        make = lambda: joined(k, v, (n, nope, v_dim, rank), kind)  # noqa: E731
        g.derive("attn_kv_b.weight", kind, shapes["attn_kv_b"], make, f"{k.name} and {v.name}")
    elif len(have) < 2:
        raise ModelFileError(
            f"{g.file}: tensor '{g.full('attn_kv_b.weight')}' of shape {list(shapes['attn_kv_b'])} is missing, and not "
            "both attn_k_b and attn_v_b are there, of which it could be computed"
        )
    for name in (["attn_kv_b"] if expand else []) + (["attn_k_b", "attn_v_b"] if absorb else []):
        g.claim(name + ".weight", shapes[name], "matrix")


def transposed_type(name: str, columns: int) -> str:
    """Type of a matrix whose rows are made of columns of another: float types stay what they are."""
    return name if name in WORDS else "F16" if columns % 32 else "Q8_0"


def transposed(t, shape: tuple[int, int, int], n: int, kind: str) -> np.ndarray:
    """The first n rows of each of the matrices of t, transposed, as `kind`."""
    return encoded(values_of(t).reshape(shape)[:, :n].swapaxes(1, 2), kind)


def last_rows(t, shape: tuple[int, int, int], first: int) -> np.ndarray:
    """Rows from `first` on of each of the matrices of t, as they are."""
    return t.data.reshape(*shape[:2], file_bytes(t.type_name, shape[2]))[:, first:]


def joined(k, v, sizes: tuple[int, int, int, int], kind: str) -> np.ndarray:
    """attn_kv_b of attn_k_b and attn_v_b."""
    n, nope, v_dim, rank = sizes
    plain = kind in WORDS and k.type_name == kind
    a, b = (values_of(t) if plain else values_of(t, True) for t in (k, v))
    return encoded(np.concatenate([a.reshape(n, rank, nope).swapaxes(1, 2), b.reshape(n, v_dim, rank)], 1), kind)


def values_of(t, as_numbers: bool = False) -> np.ndarray:
    """(rows, columns): float32, those that products multiply with, or the words of a float type as they are."""
    rows, k = int(np.prod(t.shape[:-1])), t.shape[-1]
    if t.type_name in WORDS and not as_numbers:
        return t.data.view(WORDS[t.type_name]).reshape(rows, k)
    return multiplied(t.data, t.type_name, (rows, k))


def encoded(x: np.ndarray, kind: str) -> np.ndarray:
    """Bytes of numbers as Q8_0 or F16; words of a float type as they are."""
    if x.dtype != np.float32:
        return np.ascontiguousarray(x)
    if kind != "Q8_0":
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are found where the matrix is read
            return x.astype({"F16": np.float16, "F32": np.float32}[kind])
    return q8_0(x)
