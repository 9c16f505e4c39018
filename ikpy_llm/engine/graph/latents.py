"""Matrices of latent attention that a file lacks, computed from those it has.

attn_kv_b is [head][K_h, V_h][rank], or attn_k_b is [head][rank][K_h^T] and attn_v_b is [head][V_h][rank].
"""

from __future__ import annotations

import numpy as np

from ikpy_llm.engine.file.requant import multiplied, q8_0
from ikpy_llm.engine.graph.graph import Graph
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.errors import ModelFileError, shown
from ikpy_llm.kernels.derive.layout import file_bytes

WORDS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


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
