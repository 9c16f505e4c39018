"""Whether the numbers of a matrix are finite: those of float types, of others the scales and minimums that their codes
are multiplied with. Codes are small integers, so that nothing else can be infinite or NaN.
"""

from __future__ import annotations

import numpy as np

from ..quants import get
from ..simd import ops
from ..simd.ops import F32, LANES, f32_bits, fma, inline, load_f32, reduce_add, stack, zeros
from .dequant import row_decoder
from .gemv import column_reader
from .rows import row_functions

NAN_E8M0 = 255  # the code of MXFP4's scales that means NaN; each of NVFP4's has a value, as in llama.cpp


def finite(type: str):
    """words: src (file rows), row_stride bytes, rows, k, bad: an int64 0 that becomes the number of a row that is not
    finite, counted from 1; the first one on one thread. Threads take turns with the rows.
    """
    is_finite = finite_row(get(type))

    def finite(src, row_stride, rows, k, bad, ith, nth):
        for r in range(ith, rows, nth):
            if not is_finite(src + r * row_stride, k) and ops.load_i64(bad) == 0:
                ops.store_i64(bad, r + 1)

    return finite


def finite_row(q):
    """Inlined function (row address, k) -> whether the row's numbers are finite."""
    return _plain(q) if q.is_float else _scales(q)


@inline
def exponent(x):
    """Bits of which 31 is set where x is infinite or NaN: the exponent is then all ones, and one more overflows it."""
    return (f32_bits(x) & 0x7F800000) + 0x800000


def _scales(q):
    fns, meta, size = row_functions(q), q.meta, q.n_bytes
    columns, subs, step = q.block, q.block // q.sub, q.group // q.sub
    row, d, dmin, scale, floor, code = fns.row, fns.d, fns.dmin, fns.scale, fns.floor, fns.scale_int
    of_block, of_mins = q.block_d, q.int_mins and q.row is None
    floats, float_mins, e8m0 = q.scales == "f16", q.mins == "f16", q.scales == "e8m0"
    if not of_mins:
        dmin = d

    @inline
    def is_finite(at, k):
        found, p = exponent(row(at)), at + meta
        nan = 0
        for _ in range(k // columns):
            if of_block:
                found |= exponent(d(p))
            if of_mins:
                found |= exponent(dmin(p))
            if floats:
                for j in range(0, subs, step):
                    found |= exponent(scale(p, j))
            if float_mins:
                for j in range(subs):
                    found |= exponent(floor(p, j))
            if e8m0:
                for j in range(0, subs, step):
                    nan |= code(p, j) == NAN_E8M0
            p += size
        return found & 0x80000000 == 0 and nan == 0

    return is_finite


def _plain(q):
    """Zero times each, added up, is NaN where one is not finite."""
    read, one, size, lanes = column_reader(q), row_decoder(q), q.n_bytes, LANES
    temp, step = stack(4), LANES * q.n_bytes

    @inline
    def is_finite(at, k):
        whole, zero = k // (4 * lanes) * (4 * lanes), zeros(F32)
        a, b, c, d = zeros(F32), zeros(F32), zeros(F32), zeros(F32)
        for i in range(0, whole, 4 * lanes):
            p = at + i * size
            a = fma(read(p), zero, a)
            b = fma(read(p + step), zero, b)
            c = fma(read(p + 2 * step), zero, c)
            d = fma(read(p + 3 * step), zero, d)
        total, buffer = reduce_add((a + b) + (c + d)), temp()
        for i in range(whole, k):
            one(at + i * size, buffer, 1, np.float32(1))
            total += load_f32(buffer) * np.float32(0)
        return total == np.float32(0)

    return is_finite
