"""The float types' part of gemv_rows: W rows run side by side, as many as a vector has lanes, in two halves.

Blocks of a half are transposed in registers by pairs of columns: a vector then holds an even and an odd column of W / 2
rows, and sums are added in the order of gemv.py, which sums even and odd columns apart.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from ..run.dealing import next_run, own_run
from ..simd import memory, ops
from ..simd.core import I64, Tile, Vec, float_fn, shuffle
from ..simd.ops import F32, LANES, bf16_to_f32, cast, inline, load, load_f32, stack, store, store_f32, tile_load, zeros
from ..simd.shared import intrinsic
from .dequant import row_decoder
from .layout import SLICE
from .tileops import _pack

HALF, VECTOR = LANES // 2, 4 * LANES  # rows, bytes
SQUARE, PAIRS = Tile(F32, HALF), ir.VectorType(I64, HALF)
AHEAD = 512  # bytes asked for ahead in each row


def gemv_float_rows(q):
    """gemv_rows of this type."""
    dot, write, lanes = _rows(q), _writer(), LANES

    def gemv_rows(w, row_stride, acts, stride, start, y, rows, k, bias_at, residual_at, claim, ith, nth):
        n_groups = (rows + lanes - 1) // lanes
        first, end, dealt = own_run(n_groups, lanes * row_stride, claim, ith, nth)
        while first < n_groups:
            for group in range(first, end):
                row = group * lanes
                n = min(lanes, rows - row)
                if n == lanes:
                    write(dot(w + row * row_stride, row_stride, k, acts, stride), y, row, 0, n, bias_at, residual_at)
                elif row > 0:  # the last W rows, of which some are another group's
                    base = rows - lanes
                    total = dot(w + base * row_stride, row_stride, k, acts, stride)
                    write(total, y, base, row - base, lanes, bias_at, residual_at)
                else:  # too few: each row in all lanes
                    for r in range(n):
                        write(dot(w + r * row_stride, 0, k, acts, stride), y, r, 0, 1, bias_at, residual_at)
            first, end = next_run(n_groups, dealt, claim, nth)

    return gemv_rows


def _writer():
    """Function (totals, y, row of the first, rows from .. to of them, bias, residual): those to y[row + r]."""
    buffer = stack(2 * VECTOR)

    @inline
    def write(totals, y, row, first, end, bias_at, residual_at):
        temp = buffer()
        store(temp, totals[0])
        store(temp + VECTOR, totals[1])
        for r in range(first, end):
            value, at = load_f32(temp + 8 * r), 4 * (row + r)
            if bias_at != 0:
                value += load_f32(bias_at + at)
            if residual_at != 0:
                value += load_f32(residual_at + at)
            store_f32(y + at, value)

    return write


def _rows(q):
    """Function (first row, row stride, k, acts, stride of a record) -> two F32: the products of W rows, each twice."""
    block, tail, lanes, size = _block(q), _tail(q), LANES, q.n_bytes

    @inline
    def dot(row, row_stride, k, rec, stride):
        low, high, half = zeros(F32), zeros(F32), HALF * row_stride
        for k0 in range(0, k, SLICE):
            width, at = min(SLICE, k - k0), row + k0 * size
            whole = width // lanes * lanes
            a, b = zeros(F32), zeros(F32)
            for i in range(0, whole, lanes):
                p, x = at + i * size, rec + 4 * i
                a, b = add_pairs(block(p, row_stride), x, a), add_pairs(block(p + half, row_stride), x, b)
            for i in range(whole, width, 2):
                p, x, n = at + i * size, rec + 4 * i, min(2, width - i)
                a, b = tail(p, row_stride, x, n, a), tail(p + half, row_stride, x, n, b)
            low, high = low + even_odd(a), high + even_odd(b)
            rec += stride
        return low, high

    return dot


def _block(q):
    """Function (address, row stride) -> Tile: W / 2 pairs of columns of W / 2 rows."""
    vec = Vec({"f32": "f32", "f16": "f16", "bf16": "u16"}[q.elem], LANES)
    fetch, half, is_bf16 = _prefetch(), HALF, q.elem == "bf16"

    @inline
    def block(at, row_stride):
        fetch(at + AHEAD, row_stride)
        rows = tile_load(vec, half, at, row_stride)
        return transposed(bf16_to_f32(rows) if is_bf16 else cast(F32, rows))

    return block


def _tail(q):
    """Function (address, row stride, activations, n, acc) -> acc plus n products, 1 or 2, of each of W / 2 rows; zeros
    take the place of a second column.
    """
    one, weights, pair = row_decoder(q), stack(VECTOR), stack(8)

    @inline
    def tail(at, row_stride, x, n, acc):
        w, own = weights(), pair()
        store(w, zeros(F32))
        store_f32(own + 4, np.float32(0))
        for r in range(HALF):
            one(at + r * row_stride, w + 8 * r, n, np.float32(1))
        for i in range(n):
            store_f32(own + 4 * i, load_f32(x + 4 * i))
        return add_pair(load(F32, w), own, acc)

    return tail


def _add(b, w, at, acc):
    x = b.insert_element(ir.Constant(PAIRS, ir.Undefined), memory.emit_load(b, at, I64), ir.IntType(32)(0))
    x = b.bitcast(shuffle(b, x, x, [0] * HALF), F32.ir)
    return float_fn(b, "fma", x, w, acc)


@intrinsic
def add_pair(typingctx, w, at, acc):
    """A pair of columns, the address of their two activations, acc -> acc + products."""
    return F32(F32, types.int64, F32), lambda ctx, b, sig, values: _add(b, *values)


@intrinsic
def add_pairs(typingctx, block, at, acc):
    """The same for a block of them, in their order."""

    def codegen(ctx, b, sig, values):
        block, at, acc = values
        for i in range(HALF):
            acc = _add(b, b.extract_value(block, i), memory.emit_at(b, at, 8 * i), acc)
        return acc

    return F32(SQUARE, types.int64, F32), codegen


@ops.op(lambda v: v)
def even_odd(b, sig, v):
    """Sums of even and of odd columns, added; in both places of a pair."""
    return b.fadd(v, shuffle(b, v, v, [i ^ 1 for i in range(LANES)]))


@intrinsic
def transposed(typingctx, block):
    """Tile of W / 2 rows of pairs -> the same with rows and columns exchanged: of 2 x 2, of 2 x 2 of those ..."""

    def codegen(ctx, b, sig, values):
        rows, step = [b.bitcast(b.extract_value(values[0], i), PAIRS) for i in range(HALF)], 1
        while step < HALF:
            low = [c if c & step == 0 else HALF + c - step for c in range(HALF)]
            high = [c + step if c & step == 0 else HALF + c for c in range(HALF)]
            for i in range(HALF):
                if i & step == 0:
                    x, y = rows[i], rows[i + step]
                    rows[i], rows[i + step] = shuffle(b, x, y, low), shuffle(b, x, y, high)
            step *= 2
        return _pack(b, SQUARE, [b.bitcast(row, F32.ir) for row in rows])

    return SQUARE(SQUARE), codegen


def _prefetch():
    """Function (address, stride): ask for a line of each of W / 2 rows."""

    @ops.op(lambda at, stride: types.void)
    def fetch(b, sig, at, stride):
        for i in range(HALF):
            memory.emit_prefetch(b, memory.emit_offset(b, at, stride, i))

    return fetch
