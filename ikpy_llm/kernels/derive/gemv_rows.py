"""Product of one activation column with a matrix that stays in the file's rows (weights not woven into panels), for
generation.

The same integer sums, scales and order of float operations as gemv.py, row by row: the result has the same bits.
"""

from __future__ import annotations

import numpy as np

from ..quants import get
from ..run.dealing import next_run, own_run
from ..simd import ops
from ..simd.core import TARGET, Vec, shuffle
from ..simd.ops import (
    dot4,
    dot4_centred,
    dot4_small,
    f32_from_bits,
    fma,
    inline,
    load,
    load_f32,
    load_i16,
    load_i32,
    prefetch,
    reduce_add,
    zeros,
)
from .gemv_float_rows import gemv_float_rows
from .layout import MAGIC_BITS, MIN_UNIT, SLICE, ActsLayout, chunk, flavour, scaled_as_integers, word_columns
from .rows import row_functions, scale_integer


def gemv_rows(type: str):
    """words: w (file rows), row_stride bytes, acts (t = 1), stride, start, y f32 [rows], rows, k, bias or 0, residual
    or 0, claim (a counter that is 0) or 0. Threads share the rows as gemv's do panels."""
    q = get(type)
    if q.is_float:
        return gemv_float_rows(q)
    dot = _quant_row(q)

    def gemv_rows(w, row_stride, acts, stride, start, y, rows, k, bias_at, residual_at, claim, ith, nth):
        first, end, dealt = own_run(rows, row_stride, claim, ith, nth)
        while first < rows:
            for r in range(first, end):
                total = dot(w + r * row_stride, k, acts, stride, start)
                if bias_at != 0:
                    total += load_f32(bias_at + 4 * r)
                if residual_at != 0:
                    total += load_f32(residual_at + 4 * r)
                ops.store_f32(y + 4 * r, total)
            first, end = next_run(rows, dealt, claim, nth)

    return gemv_rows


def _quant_row(q):
    fns, acts = row_functions(q), ActsLayout(1)
    levels, scale, floor, floor_int, dmin = fns.levels, fns.scale, fns.floor, fns.floor_int, fns.dmin
    subs, sub, block, block_bytes = max(q.block, 32) // q.sub, q.sub, q.block, q.n_bytes
    codes_type, sums_type = Vec("i8", sub), Vec("i32", sub // 4)
    product = dot4_small if q.top < 128 else dot4_centred if TARGET.pairs16 else dot4
    o_scales, o_offsets, o_sums, o_unit, in_block = acts.scales, acts.offsets, acts.sums, acts.unit, 32 // sub
    plain, columns = flavour(q.name)[0] == 0, chunk(q.name)
    as_integers, by_pairs = scaled_as_integers(q.name), columns > 0
    codes_of, spare_of = _columns_reader(), ops.stack(32)
    one_d = q.block >= SLICE or not as_integers  # else the type has a scale per row and d is 1
    o_pairs = acts.sums32 if in_block == 1 else acts.sums16
    float_mins, int_mins, unit = q.mins == "f16", q.int_mins, np.float32(-q.unit / MIN_UNIT)
    per_slice, meta, row_scale, gain, by_row = SLICE // block, q.meta, fns.row, np.float32(q.gain), q.row is not None

    starts_in_block, both = 32 // (columns or 32), 2 if in_block == 1 else 1  # numbers of a pair that belong together

    @inline
    def pair_starts(at):
        """What the sums of a sub-block start at, from the first of its numbers on."""
        total = np.int64(0)
        for c in range(starts_in_block):
            for half in range(both):
                total += load_i16(at + 4 * c + 2 * half)
        return total

    @inline
    def products(p, j, s, i, codes, rec, start):
        """Integer sum of sub-block j of block p, which is sub-block s of block i of the slice."""
        isum = np.int64(reduce_add(product(zeros(sums_type), levels(p, j), load(codes_type, codes + s * sub))))
        if by_pairs and not plain:
            isum += pair_starts(rec + start + 4 * starts_in_block * i + 2 * s)
        return isum

    @inline
    def scaled(isum, s, i, rec, start):
        """An integer sum times the scale of the activations."""
        if by_pairs:
            return np.float32(isum) * load_f32(rec + o_scales + 4 * i)
        first = MAGIC_BITS if plain else load_i32(rec + start + 4 * (i * in_block + s))
        return fma(f32_from_bits(isum + first), load_f32(rec + o_scales + 4 * i), load_f32(rec + o_offsets + 4 * i))

    if as_integers:
        scale_int, integer, d_of, factor = fns.scale_int, scale_integer(q.scales), fns.d, np.float32(q.unit)

        @inline
        def add_block(acc, p, j, i, rec, start, spare):
            """Block i of the slice, whose first sub-block is j of block p."""
            codes, isum = codes_of(rec + i * 32, spare), np.int64(0)
            for s in range(in_block):
                isum += products(p, j + s, s, i, codes, rec, start) * integer(scale_int(p, j + s))
            return fma(np.float32(isum), load_f32(rec + o_scales + 4 * i), acc)

        @inline
        def end(acc, p):
            return acc * (d_of(p) * factor)
    else:

        @inline
        def add_block(acc, p, j, i, rec, start, spare):
            codes = codes_of(rec + i * 32, spare)
            for s in range(in_block):
                isum = products(p, j + s, s, i, codes, rec, start)
                acc = fma(scaled(isum, s, i, rec, start), scale(p, j + s), acc)
                if float_mins:
                    acc = fma(load_f32(rec + o_sums + 4 * i), -floor(p, j + s), acc)
            return acc

        @inline
        def end(acc, p):
            return acc

    @inline
    def mins(acc, p, rec):
        if int_mins:
            isum = np.int64(0)
            for j in range(subs):
                isum += floor_int(p, j) * load_i16(rec + o_pairs + 2 * j)
            return fma(np.float32(isum) * load_f32(rec + o_unit), dmin(p) * unit, acc)
        return acc

    @inline
    def dot(row, k, rec, stride, start):
        total, spare = np.float32(0), spare_of()
        p = row + meta
        for k0 in range(0, k, SLICE):
            acc = np.float32(0)
            for b in range(min(per_slice, (k - k0) // block)):
                prefetch(p + 1024)
                for j in range(0, subs, in_block):
                    acc = add_block(acc, p, j, (b * subs + j) // in_block, rec, start, spare)
                if one_d:
                    acc = mins(end(acc, p), p, rec)
                p += block_bytes
            total += acc if one_d else end(acc, row + meta)
            rec += stride
        return fma(total, row_scale(row) * gain, np.float32(0)) if by_row else total

    return dot


def _columns_reader():
    """Function (address of the codes of a block, 32 spare bytes) -> address where they lie in the order of columns."""
    order = word_columns()
    if order == tuple(range(32)):

        @inline
        def at(codes, spare):
            return codes

        return at
    whole = Vec("i8", 32)

    @ops.op(lambda v: v)
    def sorted_columns(b, sig, v):
        return shuffle(b, v, v, [order.index(i) for i in range(32)])

    @inline
    def at(codes, spare):
        ops.store(spare, sorted_columns(load(whole, codes)))
        return spare

    return at
