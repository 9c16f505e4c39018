"""Activations for the matrix kernels: f32 rows to s8 codes with scales, start values and sums (layout.ActsLayout), or
to f32 tiles for float types.

The source can be computed on the way: "norm" = x * rsqrt(mean(x^2) + eps) * w, or an activation of mathfn.ACTS:
act(x) * w with w another matrix of rows.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from ..rows.rowwise import sum_squares
from ..simd import memory, ops
from ..simd.core import TARGET, Vec, broadcast, shuffle
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
# a number for each block of a slice
F32X8, I32X8, U32X8, I16X8 = (Vec(elem, 8) for elem in ("f32", "i32", "u32", "i16"))


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


def _scatter_halves(t: int):
    """Function (address, I32V codes of columns c .. c + 8, those of c + 16 ..): 4 words of layout.word_columns()."""
    pairs = ir.VectorType(ir.IntType(64), 4)

    @ops.op(lambda addr, v, w: types.void)
    def scatter(b, sig, addr, v, w):
        v, w = (b.and_(x, ops.constant(I32V, 255)) for x in (v, w))
        wide = b.bitcast(b.or_(v, b.shl(w, ops.constant(I32V, 16))), pairs)
        words = b.bitcast(b.or_(wide, b.lshr(wide, ir.Constant(pairs, [24] * 4))), I32V.ir)
        if t == 1:
            memory.emit_store(b, shuffle(b, words, words, [0, 2, 4, 6]), addr)
            return
        for i in range(4):
            memory.emit_store(b, b.extract_element(words, ops.I32(2 * i)), b.add(addr, addr.type(4 * t * i)))

    return scatter


def _added_neighbours(b, v, w):
    """Sums of neighbouring lanes of two vectors of 8, four by four."""
    even, odd = ([i, i + 2, i + 8, i + 10, i + 4, i + 6, i + 12, i + 14] for i in (0, 1))
    return b.add(shuffle(b, v, w, even), shuffle(b, v, w, odd))


@ops.op(lambda pairs, halves, q0, q1, q2, q3: types.void)
def put_pair_sums(b, sig, pairs, halves, q0, q1, q2, q3):
    """Sums of 32 codes: at `pairs` of those of each two words, their first columns and their last ones (layout.chunk);
    at `halves` of either half."""
    v = _added_neighbours(b, _added_neighbours(b, q0, q2), _added_neighbours(b, q1, q3))
    v = shuffle(b, v, v, [0, 1, 4, 5, 2, 3, 6, 7])
    memory.emit_store(b, v, pairs)
    v = b.add(shuffle(b, v, v, [0, 1, 2, 3]), shuffle(b, v, v, [4, 5, 6, 7]))
    memory.emit_store(b, b.add(shuffle(b, v, v, [0, 1]), shuffle(b, v, v, [2, 3])), halves)


def pair_starts(width: int):
    """Function (address, distance, I32V: what put_pair_sums wrote of 32 codes, factor): start pairs of `width` columns
    each, at multiples of the distance."""

    @ops.op(lambda addr, distance, v, factor: types.void)
    def put(b, sig, addr, distance, v, factor):
        if width > 8:
            v = b.add(v, shuffle(b, v, v, [2, 3, 0, 1, 6, 7, 4, 5]))
        if width > 16:
            v = b.add(v, shuffle(b, v, v, [4, 5, 6, 7, 0, 1, 2, 3]))
        v = b.mul(v, broadcast(b, b.trunc(factor, ops.I32), I32V))
        v = b.trunc(v, ir.VectorType(ir.IntType(16), LANES))
        words = b.bitcast(v, ir.VectorType(ops.I32, LANES // 2))
        for i in range(32 // width):
            memory.emit_store(
                b, b.extract_element(words, ops.I32(i * width // 8)), memory.emit_offset(b, addr, distance, i)
            )

    return put


def quantize(source: str, t: int, is_float: bool = False):
    """words: x, w (norm weights, or rows of up; unused for plain), acts, k, x_stride (elements between rows),
    stride (of a record), flavour0, flavour1, flavour2, eps f32, state.

    A flavour word is zero * 256 + sub (or PAIRS + chunk), 0 for none. Tiles are split between threads; for t = 1 slices
    are. A value that is not finite, or 2^110 or more in size, sets state word 3.
    """
    layout, read, scatter = ActsLayout(t), value_reader(source), _scatter(t)
    lanes, per_block, is_norm, row_weights = LANES, 32 // LANES, source == "norm", source in ACTS
    o_scales, o_offsets, o_sums, o_sums32, o_sums16, o_unit, o_starts = (
        layout.scales,
        layout.offsets,
        layout.sums,
        layout.sums32,
        layout.sums16,
        layout.unit,
        layout.starts,
    )
    values, eight, sixteen, by_pairs = stack(4 * SLICE), stack(4 * 8), stack(4 * 16), stack(4 * 8 * 8)
    min_unit, minus_magic, pairs16 = np.float32(MIN_UNIT), np.float32(-MAGIC), TARGET.pairs16
    starts32, starts16, starts8, scatter_halves = pair_starts(32), pair_starts(16), pair_starts(8), _scatter_halves(t)

    @inline
    def starts(at, c, flavour, blocks, wholes, halves, pairs):
        """Start values of column c; returns the address of the next flavour's array."""
        zero, sub = flavour >> 8, flavour & 255
        if sub == 32:
            for b in range(blocks):
                ops.store_i32(at + 4 * (b * t + c), MAGIC_BITS - zero * ops.load_i32(wholes + 4 * b))
            return at + 32 * t
        if sub == 16:
            for i in range(2 * blocks):
                ops.store_i32(at + 4 * (i * t + c), MAGIC_BITS - zero * ops.load_i32(halves + 4 * i))
            return at + 64 * t
        if pairs16 and sub > PAIRS:
            step = 32 // (sub - PAIRS) * 4 * t
            for b in range(blocks):
                sums, first = load(I32V, pairs + 32 * b), at + b * step + 4 * c
                if sub == PAIRS + 32:
                    starts32(first, 4 * t, sums, -zero)
                elif sub == PAIRS + 16:
                    starts16(first, 4 * t, sums, -zero)
                else:
                    starts8(first, 4 * t, sums, -zero)
            return at + 8 * step
        return at

    @inline
    def scales(amax):
        """Values of code 1 where amax, given by its bits, are the largest: at least amax / 127, and of 22 bits."""
        x = bits(F32X8, amax)
        d = bits(F32X8, ((bits(U32X8, x * np.float32(1 / 127)) + 3) >> 2) << 2)
        return ops.select(x > np.float32(1e-30), d, zeros(F32X8))

    @inline
    def codes(x, up):
        """Codes of the values at x. Products with `up` stay within 127, but for NaN."""
        return cast(I32V, ops.minimum(rint(load(F32, x) * up), splat(F32, np.float32(127))))

    if pairs16:

        @inline
        def block(x, up, to, sums, pairs):
            """Codes of the 32 values at x, and their sums."""
            q0, q1, q2, q3 = codes(x, up), codes(x + 32, up), codes(x + 64, up), codes(x + 96, up)
            scatter_halves(to, q0, q2)
            scatter_halves(to + 16 * t, q1, q3)
            put_pair_sums(pairs, sums, q0, q1, q2, q3)
    else:

        @inline
        def block(x, up, to, sums, pairs):
            for i in range(0, 32, 16):
                total = zeros(I32V)
                for v in range(i, i + 16, lanes):
                    q = codes(x + 4 * v, up)
                    scatter(to + v * t, cast(I8L, q))
                    total = total + q
                ops.store_i32(sums + i // 4, reduce_add(total))

    @inline
    def put_sums(rec, c, blocks, d, per_unit, wholes, halves):
        """All that a column stores besides codes, unit and start values."""
        fixed, whole, buf = d * per_unit, cast(F32X8, load(I32X8, wholes)), values()
        store(buf, d)
        store(buf + 32, d * minus_magic)
        store(buf + 64, whole * d)
        low, high = (cast(F32X8, load(I32X8, halves)), cast(F32X8, load(I32X8, halves + 32)))
        store(buf + 96, cast(I16X8, cast(I32X8, rint(low * ops.interleave_low(fixed, fixed)))))
        store(buf + 112, cast(I16X8, cast(I32X8, rint(high * ops.interleave_high(fixed, fixed)))))
        store(buf + 128, cast(I16X8, cast(I32X8, rint(whole * fixed))))
        for b in range(blocks):
            at = rec + 4 * (b * t + c)
            ops.store_i32(at + o_scales, ops.load_i32(buf + 4 * b))
            ops.store_i32(at + o_offsets, ops.load_i32(buf + 32 + 4 * b))
            ops.store_i32(at + o_sums, ops.load_i32(buf + 64 + 4 * b))
            ops.store_i32(at + o_sums16, ops.load_i32(buf + 96 + 4 * b))
        for b in range((blocks + 1) // 2):
            ops.store_i32(rec + o_sums32 + 4 * (b * t + c), ops.load_i32(buf + 128 + 4 * b))

    @inline
    def one(x, w, factor, rec, c, n, f0, f1, f2, state):
        """Slice of n values at x -> column c of the record."""
        buf, peak, wholes, halves, pairs = values(), eight(), eight(), sixteen(), by_pairs()
        store(peak, zeros(U32X8))
        store(wholes, zeros(I32X8))
        store(halves, zeros(I32X8))
        store(halves + 32, zeros(I32X8))
        top, blocks = np.int64(0), n // 32
        for b in range(blocks):
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
            store(peak, zeros(U32X8))
        d = scales(load(U32X8, peak))
        unit = reduce_max(d)
        per_unit = min_unit / unit if unit > np.float32(0) else np.float32(0)
        ops.store_f32(rec + o_unit + 4 * c, unit)
        store(peak, ops.select(d > np.float32(0), splat(F32X8, np.float32(1)) / d, zeros(F32X8)))
        for b in range(blocks):
            up = ops.load_f32(peak + 4 * b)
            block(buf + 128 * b, up, rec + 32 * b * t + 4 * c, halves + 8 * b, pairs + 32 * b)
        for b in range(blocks):
            ops.store_i32(wholes + 4 * b, ops.load_i32(halves + 8 * b) + ops.load_i32(halves + 8 * b + 4))
        put_sums(rec, c, blocks, d, per_unit, wholes, halves)
        at = starts(rec + o_starts, c, f0, blocks, wholes, halves, pairs)
        at = starts(at, c, f1, blocks, wholes, halves, pairs)
        starts(at, c, f2, blocks, wholes, halves, pairs)

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
            for i in range(n // 4):
                ops.store_i32(rec + 4 * (i * t + c), 0)
            wholes, halves, pairs = eight(), sixteen(), by_pairs()
            for i in range(8):
                store(pairs + 32 * i, zeros(I32X8))
            store(wholes, zeros(I32X8))
            store(halves, zeros(I32X8))
            store(halves + 32, zeros(I32X8))
            put_sums(rec, c, n // 32, zeros(F32X8), np.float32(0), wholes, halves)
            at = starts(rec + o_starts, c, f0, n // 32, wholes, halves, pairs)
            at = starts(at, c, f1, n // 32, wholes, halves, pairs)
            starts(at, c, f2, n // 32, wholes, halves, pairs)
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
