"""Scales and minimums of panels, as floats or as the integers they are stored as."""

from __future__ import annotations

import numpy as np

from ..quants import Quant
from ..simd import ops
from ..simd.core import Vec
from ..simd.ops import F16, F32, I8L, I16V, I32V, LANES, U8L, bits, cast, inline, load, splat
from .layout import MIN_UNIT, NIBBLES, PanelLayout
from .rows import scale_integer


def scale_reader(q: Quant):
    """Functions d(super-block, n) -> F32 and scale(super-block, n, j, d) -> F32 of sub-block j for W rows; scale
    includes d, but not the scales of rows."""
    layout = PanelLayout(q, LANES)
    code_bytes, fixed, group, sub, unit = layout.code_bytes, layout.block_bytes, q.group, q.sub, np.float32(q.unit)
    stored, to_float = stored_scales(q, layout), scale_vector(q.scales)
    if q.block_d:

        @inline
        def d(p, n):
            return cast(F32, load(F16, p + n * fixed)) * unit

        @inline
        def scale(p, n, j, d):
            return to_float(stored(p + n * code_bytes, j)) * d

        return d, scale

    @inline
    def d(p, n):
        return splat(F32, np.float32(1))

    if q.scales == "one":

        @inline
        def scale(p, n, j, d):
            return d
    elif q.scales == "f16":

        @inline
        def scale(p, n, j, d):
            return cast(F32, load(F16, p + n * code_bytes + j * sub // group * (2 * LANES)))
    elif q.unit != 1:

        @inline
        def scale(p, n, j, d):
            return to_float(stored(p + n * code_bytes, j)) * unit
    else:

        @inline
        def scale(p, n, j, d):
            return to_float(stored(p + n * code_bytes, j))

    return d, scale


def stored_scales(q: Quant, layout: PanelLayout):
    """Function (address of a super-block's scales, j) -> I32V of the integers of sub-block j."""
    if q.scales in NIBBLES:
        if layout.packed_mins:

            @inline
            def stored(at, j):
                return cast(I32V, ops.field(load(U8L, at + j * LANES), 0, 4))
        else:

            @inline
            def stored(at, j):
                return cast(I32V, ops.field(load(U8L, at + (j >> 1) * LANES), 4 * (j & 1), 4))
    else:
        lane, bit = I8L if q.scales in ("i8", "i7") else U8L, int(q.scales in ("i7", "odd7"))

        @inline
        def stored(at, j):
            return cast(I32V, load(lane, at + j * LANES)) >> bit

    return stored


def int_scale_reader(q: Quant):
    """Functions d(super-block, n) -> F32, what integer scales are multiples of, and scales(super-block, n, block) ->
    I16V: those of the block's two sub-blocks for each row, or that of the block twice."""
    layout = PanelLayout(q, LANES)
    code_bytes, unit = layout.code_bytes, np.float32(q.unit)
    stored, integer = stored_scale_pairs(q, layout), scale_integer(q.scales)
    if q.block_d:
        d = scale_reader(q)[0]
    else:

        @inline
        def d(p, n):
            return splat(F32, unit)

    if q.scales == "one":

        @inline
        def scales(p, n, block):
            return splat(I16V, np.int16(1))
    else:

        @inline
        def scales(p, n, block):
            return integer(stored(p + n * code_bytes, block))

    return d, scales


def stored_scale_pairs(q: Quant, layout: PanelLayout):
    """Function (address of a super-block's scales, block) -> I16V of the integers of its sub-blocks."""
    lane, bit = I8L if q.scales in ("i8", "i7") else U8L, int(q.scales in ("i7", "odd7"))
    subs, step = layout.subs, layout.scale_bytes
    other = (subs - 1) * LANES  # where the second sub-block's stand

    @inline
    def pairs(v, w):
        return cast(I16V, ops.join(ops.interleave_low(v, w), ops.interleave_high(v, w)))

    if q.scales not in NIBBLES:

        @inline
        def stored(at, block):
            p = at + block * step
            return pairs(load(lane, p), load(lane, p + other)) >> bit
    elif layout.packed_mins:

        @inline
        def stored(at, block):
            p = at + block * step
            return pairs(ops.field(load(U8L, p), 0, 4), ops.field(load(U8L, p + other), 0, 4))
    elif subs == 2:

        @inline
        def stored(at, block):
            both = load(U8L, at + block * LANES)
            return pairs(ops.field(both, 0, 4), ops.field(both, 4, 4))
    else:

        @inline
        def stored(at, block):
            one = ops.field(load(U8L, at + (block >> 1) * LANES), 4 * (block & 1), 4)
            return pairs(one, one)

    return stored


def scale_vector(kind: str):
    """Function (I32V as stored) -> F32, the vector form of rows.scale_float."""
    if kind == "e8m0":

        @inline
        def number(e):
            return bits(F32, ops.select(e > 1, (e - 1) << 23, splat(I32V, 0x200000) << e))
    elif kind == "ue4m3":

        @inline
        def number(x):
            e, m = (x >> 3) & 15, x & 7
            normal = bits(F32, ((e + 119) << 23) | (m << 20))
            value = ops.select(e > 0, normal, cast(F32, m) * np.float32(2**-10))
            return ops.select(x == 127, splat(F32, np.float32(0)), value)
    else:
        integer = scale_integer(kind)

        @inline
        def number(s):
            return cast(F32, integer(s))

    return number


def min_reader(q: Quant):
    """mins "f16": function (super-block, n, j) -> F32 of -floor. Integer mins: functions pairs(super-block, n, jj) ->
    I16V of sub-blocks 2jj, 2jj+1 interleaved by row, and unit(super-block, n) -> F32, -dmin / MIN_UNIT. None for types
    without."""
    layout = PanelLayout(q, LANES)
    code_bytes, fixed, factor = layout.code_bytes, layout.block_bytes, np.float32(-q.unit / MIN_UNIT)
    base = code_bytes + layout.scale_bytes
    if q.mins is None:
        return None
    if q.mins == "f16":

        @inline
        def minimum(p, n, j):
            return cast(F32, load(F16, p + n * base + j * (2 * LANES)))

        return minimum
    if layout.packed_mins:

        @inline
        def pairs(p, n, jj):
            at = p + n * code_bytes + jj * (2 * LANES)
            a, b = ops.field(load(U8L, at), 4, 4), ops.field(load(U8L, at + LANES), 4, 4)
            return cast(I16V, ops.join(ops.interleave_low(a, b), ops.interleave_high(a, b)))
    else:
        pair = Vec(q.mins, 2 * LANES)

        @inline
        def pairs(p, n, jj):
            return cast(I16V, load(pair, p + n * base + jj * (2 * LANES)))

    if q.row:

        @inline
        def unit(p, n):
            return splat(F32, factor)
    else:

        @inline
        def unit(p, n):
            return cast(F32, load(F16, p + n * fixed + 2 * LANES)) * factor

    return pairs, unit
