"""Rows of the file to float32."""

from __future__ import annotations

import numpy as np

from ..quants import get
from ..simd.core import Vec
from ..simd.ops import bf16_to_f32, cast, inline, load, store
from .rows import row_functions


def row_decoder(q):
    """Inlined function (row address, dst address, k, factor): dst[i] = factor * value[i]."""
    if q.is_float:
        return _plain_decoder(q)
    rows = row_functions(q)
    levels, scale, floor, row_scale = rows.levels, rows.scale, rows.floor, rows.row
    vec, zero, sub, block, size, meta = Vec("f32", q.sub), np.float32(q.zero), q.sub, q.block, q.n_bytes, q.meta
    affine = q.mins is not None

    @inline
    def values(p, j, d):
        scaled = (cast(vec, levels(p, j)) - zero) * (scale(p, j) * d)
        return scaled - floor(p, j) * d if affine else scaled

    @inline
    def decode(row, dst, k, factor):
        d = row_scale(row)
        for i in range(k // block):
            for j in range(block // sub):
                store(dst + 4 * (i * block + j * sub), values(row + meta + i * size, j, d) * factor)

    return decode


def _plain_decoder(q):
    elem = {"f32": "f32", "f16": "f16", "bf16": "u16"}[q.elem]
    wide, one, size, is_bf16 = Vec(elem, 8), Vec(elem, 1), q.n_bytes, q.elem == "bf16"
    f8, f1 = Vec("f32", 8), Vec("f32", 1)
    if is_bf16:

        @inline
        def read8(p):
            return bf16_to_f32(load(wide, p))

        @inline
        def read1(p):
            return bf16_to_f32(load(one, p))
    else:

        @inline
        def read8(p):
            return cast(f8, load(wide, p))

        @inline
        def read1(p):
            return cast(f1, load(one, p))

    @inline
    def decode(row, dst, k, factor):
        whole = k // 8 * 8
        for i in range(0, whole, 8):
            store(dst + 4 * i, read8(row + i * size) * factor)
        for i in range(whole, k):
            store(dst + 4 * i, read1(row + i * size) * factor)

    return decode


def dequant(type: str):
    """words: src, row_stride bytes, dst f32 [rows][k], rows, k."""
    decode = row_decoder(get(type))

    def dequant(src, row_stride, dst, rows, k, ith, nth):
        for r in range(ith, rows, nth):
            decode(src + r * row_stride, dst + 4 * r * k, k, np.float32(1))

    return dequant
