"""Activations for the matrix kernels: f32 rows to s8 codes with scales, start values and sums (layout.ActsLayout), or
to f32 tiles for float types.

The source can be computed on the way: "norm" = x * rsqrt(mean(x^2) + eps) * w, or an activation of mathfn.ACTS:
act(x) * w with w another matrix of rows.
"""

from __future__ import annotations

import numpy as np
from numba import types

from ..rowwise import sum_squares
from ..simd import memory, ops
from ..simd.core import TARGET, Vec, shuffle
from ..simd.mathfn import ACTS
from ..simd.ops import (
    F32,
    I32V,
    LANES,
    U32V,
    bits,
    cast,
    f32,
    inline,
    load,
    maximum,
    reduce_add,
    reduce_max,
    rint,
    splat,
    stack,
    store,
    zeros,
)
from .layout import LIMIT_BITS, MAGIC, MAGIC_BITS, MIN_UNIT, PAIRS, SLICE, ActsLayout

I8L, CODE_WORDS = Vec("i8", LANES), LANES // 4


def value_reader(source: str):
    """Function (x, w, factor) -> F32: one vector of the source at addresses x and w."""
    if source == "plain":

        @inline
        def read(x, w, factor):
            return load(F32, x)
    elif source == "norm":

        @inline
        def read(x, w, factor):
            return load(F32, x) * factor * load(F32, w)
    elif source in ACTS:
        act = ACTS[source]

        @inline
        def read(x, w, factor):
            return act(load(F32, x)) * load(F32, w)
    else:
        raise ValueError(f"quantize: source {source!r}: accepted are plain, norm, {', '.join(ACTS)}")
    return read


def _scatter(t: int):
    """Function (address, I8L codes): each 4 codes go 4 * t bytes further."""
    words = Vec("u32", CODE_WORDS)

    @ops.op(lambda addr, v: types.void)
    def scatter(b, sig, addr, v):
        if t == 1:
            memory.emit_store(b, v, addr)
            return
        w = b.bitcast(v, words.ir)
        for i in range(words.lanes):
            memory.emit_store(b, b.extract_element(w, ops.I32(i)), b.add(addr, addr.type(4 * t * i)))

    return scatter


def _put_pairs():
    """Function (address, I32V): the sums of the lanes of even pairs and of those of odd ones, where kernels read such
    (layout.chunk)."""
    pairs16 = TARGET.pairs16

    @ops.op(lambda addr, v: types.void)
    def put(b, sig, addr, v):
        if pairs16:
            v = b.add(shuffle(b, v, v, [0, 1, 2, 3]), shuffle(b, v, v, [4, 5, 6, 7]))
            v = b.add(v, shuffle(b, v, v, [1, 0, 3, 2]))
            memory.emit_store(b, shuffle(b, v, v, [0, 2]), addr)

    return put


def quantize(source: str, t: int, is_float: bool = False):
    """words: x, w (norm weights, or rows of up; unused for plain), acts, k, x_stride (elements between rows),
    stride (of a record), flavour0, flavour1, flavour2, eps f32, state.

    A flavour word is zero * 256 + sub (or PAIRS + chunk), 0 for none. Tiles are split between threads; for t = 1 slices
    are. A value that is not finite, or 2^110 or more in size, sets state word 3.
    """
    layout, read, scatter = ActsLayout(t), value_reader(source), _scatter(t)
    lanes, per_block, is_norm, row_weights = LANES, 32 // LANES, source == "norm", source in ACTS
    per_half = max(16 // LANES, 1)
    o_scales, o_offsets, o_sums, o_sums32, o_sums16, o_unit, o_starts = (
        layout.scales,
        layout.offsets,
        layout.sums,
        layout.sums32,
        layout.sums16,
        layout.unit,
        layout.starts,
    )
    values, peaks, pair_sums, put_pairs = stack(4 * SLICE), stack(4 * 8), stack(4 * 8), _put_pairs()
    min_unit, minus_magic = np.float32(MIN_UNIT), np.float32(-MAGIC)

    @inline
    def starts(at, c, flavour, b, s0, s1, by_pairs):
        """Start values of block b, column c; returns the address of the next flavour's array."""
        zero, sub = flavour >> 8, flavour & 255
        if sub == 32:
            ops.store_i32(at + 4 * (b * t + c), MAGIC_BITS - zero * (s0 + s1))
            return at + 32 * t
        if sub == 16:
            ops.store_i32(at + 4 * (2 * b * t + c), MAGIC_BITS - zero * s0)
            ops.store_i32(at + 4 * ((2 * b + 1) * t + c), MAGIC_BITS - zero * s1)
            return at + 64 * t
        if sub > PAIRS:
            groups, chunks = (sub - PAIRS) // 8, 32 // (sub - PAIRS)
            for i in range(chunks):
                first = at + 4 * ((b * chunks + i) * t + c)
                for odd in range(2):
                    s = np.int64(0)
                    for g in range(i * groups, (i + 1) * groups):
                        s += ops.load_i32(by_pairs + 8 * g + 4 * odd)
                    ops.store_i16(first + 2 * odd, -zero * s)
            return at + 32 * t * chunks
        return at

    @inline
    def scale(amax):
        """Value of code 1 where amax, given by its bits, is the largest: at least amax / 127, and of 22 bits."""
        x = ops.f32_from_bits(amax)
        if x > np.float32(1e-30):
            return ops.f32_from_bits((ops.f32_bits(x * np.float32(1 / 127)) + 3) >> 2 << 2)
        return np.float32(0)

    @inline
    def half(buf, up, rec, c, first, by_pairs):
        """Codes of 16 values; returns their sum, and writes those of pairs. Products with `up` stay within 127, but
        for NaN."""
        sums = zeros(I32V)
        for v in range(per_half):
            i = first + v * lanes
            q = cast(I32V, ops.minimum(rint(load(F32, buf + 4 * i) * up), splat(F32, np.float32(127))))
            scatter(rec + i * t + 4 * c, cast(I8L, q))
            put_pairs(by_pairs + (i & 31), q)
            sums = sums + q
        return np.int64(reduce_add(sums))

    @inline
    def one(x, w, factor, rec, c, n, f0, f1, f2, state):
        """Slice of n values at x -> column c of the record."""
        buf, peak, by_pairs = values(), peaks(), pair_sums()
        top = np.int64(0)
        for b in range(n // 32):
            m = zeros(U32V)
            for v in range(per_block):
                i = 4 * (32 * b + v * lanes)
                val = read(x + i, w + i, factor)
                store(buf + i, val)
                m = maximum(m, bits(U32V, val) & 0x7FFFFFFF)
            am = np.int64(reduce_max(m))
            ops.store_i32(peak + 4 * b, am)
            top = max(top, am)
        if top >= LIMIT_BITS:
            ops.store_i64(state + 24, np.int64(1))
            top = np.int64(0)
        unit = scale(top)
        per_unit = min_unit / unit if unit > np.float32(0) else np.float32(0)
        ops.store_f32(rec + o_unit + 4 * c, unit)
        for b in range(n // 32):
            d = scale(min(np.int64(ops.load_i32(peak + 4 * b)), top))
            up = np.float32(1) / d if d > np.float32(0) else np.float32(0)
            s0 = half(buf, up, rec, c, 32 * b, by_pairs)
            s1 = half(buf, up, rec, c, 32 * b + 16, by_pairs)
            fixed = d * per_unit
            ops.store_f32(rec + o_scales + 4 * (b * t + c), d)
            ops.store_f32(rec + o_offsets + 4 * (b * t + c), d * minus_magic)
            ops.store_f32(rec + o_sums + 4 * (b * t + c), np.float32(s0 + s1) * d)
            ops.store_i16(
                rec + o_sums32 + 4 * ((b >> 1) * t + c) + 2 * (b & 1), np.int64(rint(np.float32(s0 + s1) * fixed))
            )
            ops.store_i16(rec + o_sums16 + 4 * (b * t + c), np.int64(rint(np.float32(s0) * fixed)))
            ops.store_i16(rec + o_sums16 + 4 * (b * t + c) + 2, np.int64(rint(np.float32(s1) * fixed)))
            at = starts(rec + o_starts, c, f0, b, s0, s1, by_pairs)
            at = starts(at, c, f1, b, s0, s1, by_pairs)
            starts(at, c, f2, b, s0, s1, by_pairs)

    @inline
    def last(x, w, factor, n):
        """read() of n < LANES values and zeros: what lies behind the last value of the source may be anything."""
        buf = values()
        store(buf, zeros(F32))
        store(buf + 4 * lanes, zeros(F32))
        for i in range(n):
            ops.store_f32(buf + 4 * i, ops.load_f32(x + 4 * i))
            if is_norm or row_weights:
                ops.store_f32(buf + 4 * (lanes + i), ops.load_f32(w + 4 * i))
        return read(buf, buf + 4 * lanes, factor)

    @inline
    def one_float(x, w, factor, rec, c, n, f0, f1, f2, state):
        """Slice of n values at x -> column c of the f32 record."""
        m = zeros(U32V)
        buf = values()
        for i in range(0, n, lanes):
            val = read(x + 4 * i, w + 4 * i, factor) if n - i >= lanes else last(x + 4 * i, w + 4 * i, factor, n - i)
            m = maximum(m, bits(U32V, val) & 0x7FFFFFFF)
            store(buf, val)
            for j in range(lanes):
                ops.store_f32(rec + 4 * ((i + j) * t + c), ops.load_f32(buf + 4 * j))
        if np.int64(reduce_max(m)) >= 0x7F800000:
            ops.store_i64(state + 24, np.int64(1))

    column = one_float if is_float else one

    @inline
    def blank(rec, c, n, f0, f1, f2):
        """A column past the last row: zeros that are valid, so that nothing slow (NaN, denormals) is computed on it."""
        if is_float:
            for i in range(n):
                ops.store_i32(rec + 4 * (i * t + c), 0)
        else:
            no_sums = pair_sums()
            for g in range(4):
                ops.store_i64(no_sums + 8 * g, 0)
            for i in range(n // 4):
                ops.store_i32(rec + 4 * (i * t + c), 0)
            for b in range(n // 32):
                ops.store_i32(rec + o_scales + 4 * (b * t + c), 0)
                ops.store_i32(rec + o_offsets + 4 * (b * t + c), 0)
                ops.store_i32(rec + o_sums + 4 * (b * t + c), 0)
                ops.store_i32(rec + o_sums32 + 4 * ((b >> 1) * t + c), 0)
                ops.store_i32(rec + o_sums16 + 4 * (b * t + c), 0)
                at = starts(rec + o_starts, c, f0, b, 0, 0, no_sums)
                at = starts(at, c, f1, b, 0, 0, no_sums)
                starts(at, c, f2, b, 0, 0, no_sums)
            ops.store_i32(rec + o_unit + 4 * c, 0)

    def quantize(x, w, acts, k, x_stride, stride, flavour0, flavour1, flavour2, eps: f32, state, ith, nth):
        n = ops.load_i64(state)
        n_tiles = (n + t - 1) // t
        n_slices = (k + SLICE - 1) // SLICE
        by_slice = t == 1 and n == 1
        for tile in range(0 if by_slice else ith, n_tiles, 1 if by_slice else nth):
            for c in range(t):
                row = tile * t + c
                factor = np.float32(0)
                if is_norm and row < n:
                    factor = np.float32(1) / np.float32(
                        np.sqrt(sum_squares(x + 4 * row * x_stride, k) / np.float32(k) + eps)
                    )
                for s in range(ith if by_slice else 0, n_slices, nth if by_slice else 1):
                    rec = acts + (s * n_tiles + tile) * stride
                    width = min(SLICE, k - s * SLICE)
                    if row < n:
                        at = 4 * (row * x_stride + s * SLICE)
                        column(
                            x + at,
                            w + (at if row_weights else 4 * s * SLICE),
                            factor,
                            rec,
                            c,
                            width,
                            flavour0,
                            flavour1,
                            flavour2,
                            state,
                        )
                    else:
                        blank(rec, c, width, flavour0, flavour1, flavour2)

    return quantize
