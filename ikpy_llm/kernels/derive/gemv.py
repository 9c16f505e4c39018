"""Product of a woven matrix with 1 to 8 activation columns: generation. Bound by memory: weights are decoded in
registers, read once, prefetched.

Per row and slice of 256 columns: total += sum_b s_b * (d_b * isum_b) + mins, or d * sum_b d_b * isum_b + mins where
integer scales are part of isum_b (layout.chunk); the same operations in the same order as gemm.py, so a token gets the
same bits alone or inside a prompt.
"""

from __future__ import annotations

import numpy as np

from ..quants import get
from ..run.dealing import next_run, own_run
from ..simd import ops
from ..simd.core import Vec
from ..simd.ops import F32, I16V, I32V, LANES, bf16_to_f32, bits, cast, fma, inline, load, splat, tile_splat, tile_zeros
from .layout import SLICE, ActsLayout, PanelLayout, chunk, flavour, scaled_as_integers
from .output import column_writer
from .panel_scales import int_scale_reader, min_reader, scale_reader
from .panels import decode_block
from .short_dots import block_sum
from .tileops import dot_vectors, panel_of, start_values, tile_of_one, tile_of_two, tile_splat_pair

# super-blocks (of about 2 KB) to ask for ahead; Zen 5, 2 threads, best of 5: 4 reach 0.95 of read bandwidth, 1 0.7
AHEAD = 4


def gemv(type: str, n: int):
    """words: w (panels), acts, stride, start (offset of the type's start values), y f32 [n][y_stride], y_stride
    (elements), rows, k, bias or 0, residual (like y) or 0, claim (a counter that is 0) or 0.

    y[c][row] = sum_k w[row][k] x[c][k] (+ bias[row]) (+ residual[c][row]). Threads get contiguous runs of panels; with
    a claim the last quarter goes to whoever comes first, as cores differ and others may use them.
    """
    q = get(type)
    dot = _float_panel(q, n) if q.is_float else _quant_panel(q, n)
    write = column_writer(n)
    lanes, block_bytes = LANES, 32 * LANES * q.n_bytes if q.is_float else PanelLayout(q, LANES).block_bytes

    def gemv(w, acts, stride, start, y, y_stride, rows, k, bias_at, residual_at, claim, ith, nth):
        n_panels = (rows + lanes - 1) // lanes
        first, end, dealt = own_run(n_panels, k // 32 * block_bytes, claim, ith, nth)
        while first < n_panels:
            for panel in range(first, end):
                total = dot(w, panel, k, acts, stride, start)
                write(total, y, y_stride, panel * lanes, rows, bias_at, residual_at)
            first, end = next_run(n_panels, dealt, claim, nth)

    return gemv


def slice_sums(q, n: int):
    """Functions d(super-block, blocks), add and end: add(acc f32 tile, super-block, blocks, block, d, record, start) ->
    acc plus the block's products, scaled; end(acc, d) -> their sum over the slice."""
    if not scaled_as_integers(q.name):

        @inline
        def end(acc, d):
            return acc

        return scale_reader(q)[0], with_float_mins(q, n, (short_sums if chunk(q.name) else block_sums)(q, n)), end
    decode, (d_of, scales), o_scales, width = decode_block(q), int_scale_reader(q), ActsLayout(n).scales, chunk(q.name)
    sums, step = block_sum(n, 1, width, q.top, flavour(q.name)[0]), 32 // width * 4 * n

    @inline
    def add(acc, p, blocks, b, d, rec, start):
        scale = tile_of_one(scales(p, blocks, b))
        products = sums(decode(p, blocks, b), rec + start + b * step, rec + b * (32 * n), scale)
        return fma(cast(F32, products), tile_splat(F32, n, rec + o_scales + b * (4 * n), 4), acc)

    @inline
    def end(acc, d):
        return acc * d

    return d_of, add, end


def short_sums(q, n: int):
    """Function (acc f32 tile, super-block, blocks, block, d, record, start) -> acc plus the block's products, summed in
    16 bits and scaled as floats."""
    decode, (_, scale), subs, o_scales = decode_block(q), scale_reader(q), 32 // q.sub, ActsLayout(n).scales
    step = 32 // chunk(q.name) * 4 * n
    sums = block_sum(n, subs, chunk(q.name), q.top, flavour(q.name)[0])
    first, last = panel_of(subs, n, 0), panel_of(subs, n, subs - 1)
    if subs == 1:

        @inline
        def multipliers():
            return tile_of_one(splat(I16V, np.int16(1)))
    else:

        @inline
        def multipliers():
            return tile_of_two(bits(I16V, splat(I32V, np.int32(1))), bits(I16V, splat(I32V, np.int32(1 << 16))))

    @inline
    def add(acc, p, blocks, b, d, rec, start):
        isums = sums(decode(p, blocks, b), rec + start + b * step, rec + b * (32 * n), multipliers())
        dx, products = tile_splat(F32, n, rec + o_scales + b * (4 * n), 4), cast(F32, isums)
        acc = fma(first(products) * dx, scale(p, blocks, subs * b, d), acc)
        if subs == 2:
            acc = fma(last(products) * dx, scale(p, blocks, 2 * b + 1, d), acc)
        return acc

    return add


def block_sums(q, n: int):
    """The same with sums that start as 32 bits."""
    decode, (_, scale) = decode_block(q), scale_reader(q)
    layout, subs = ActsLayout(n), 32 // q.sub
    o_scales, to_offsets = layout.scales, layout.offsets - layout.scales
    dot, starts = dot_vectors(n, 8 // subs, q.top), start_values(flavour(q.name)[0], n)

    @inline
    def scaled(acc, weights, first, codes, start, d, offsets, s):
        products = dot(starts(start), weights, first, codes)
        return fma(fma(bits(F32, products), d, offsets), s, acc)

    if subs == 1:

        @inline
        def add(acc, p, blocks, b, d, rec, start):
            at = rec + o_scales + b * (4 * n)
            return scaled(
                acc,
                decode(p, blocks, b),
                0,
                rec + b * (32 * n),
                rec + start + b * (4 * n),
                tile_splat(F32, n, at, 4),
                tile_splat(F32, n, at + to_offsets, 4),
                scale(p, blocks, b, d),
            )
    else:

        @inline
        def add(acc, p, blocks, b, d, rec, start):
            weights = decode(p, blocks, b)
            at = rec + o_scales + b * (4 * n)
            dx, offsets = tile_splat(F32, n, at, 4), tile_splat(F32, n, at + to_offsets, 4)
            acc = scaled(
                acc, weights, 0, rec + b * (32 * n), rec + start + b * (8 * n), dx, offsets, scale(p, blocks, 2 * b, d)
            )
            return scaled(
                acc,
                weights,
                4,
                rec + b * (32 * n) + 16 * n,
                rec + start + b * (8 * n) + 4 * n,
                dx,
                offsets,
                scale(p, blocks, 2 * b + 1, d),
            )

    return add


def with_float_mins(q, n: int, add):
    """`add` of a block, and its minimums where they are floats."""
    if q.mins != "f16":
        return add
    mins, o_sums = min_reader(q), ActsLayout(n).sums

    @inline
    def add_with_min(acc, p, blocks, b, d, rec, start):
        return fma(
            tile_splat(F32, n, rec + o_sums + b * (4 * n), 4), mins(p, blocks, b), add(acc, p, blocks, b, d, rec, start)
        )

    return add_with_min


def slice_mins(q, n: int):
    """Function (acc, super-block, blocks, record) -> acc plus the integer minimums of the slice: mins x block
    sums as pairs of 16-bit products."""
    if not q.int_mins:

        @inline
        def nothing(acc, p, blocks, rec):
            return acc

        return nothing
    pairs, unit = min_reader(q)
    layout, subs = ActsLayout(n), 32 // q.sub
    offset, o_unit = layout.sums32 if subs == 1 else layout.sums16, layout.unit

    @inline
    def add(acc, p, blocks, rec):
        isum = tile_zeros(I32V, n)
        for jj in range(blocks * subs // 2):
            isum = ops.dot2(isum, pairs(p, blocks, jj), tile_splat_pair(n, rec + offset + jj * (4 * n)))
        return fma(cast(F32, isum) * tile_splat(F32, n, rec + o_unit, 4), unit(p, blocks), acc)

    return add


def _quant_panel(q, n: int):
    layout = PanelLayout(q, LANES)
    (d_of, add, end), add_mins = slice_sums(q, n), slice_mins(q, n)
    block_bytes, fixed, header = layout.block_bytes, layout.fixed_bytes, layout.header_bytes
    lines = -(-block_bytes // 64)
    ahead = AHEAD * (8 * block_bytes + fixed)
    fetch = prefetch_lines(lines)

    @inline
    def dot(w, panel, k, rec, stride, start):
        blocks_in_row = k // 32
        first = w + panel * (header + blocks_in_row * block_bytes + (blocks_in_row + 7) // 8 * fixed)
        p = first + header
        total = tile_zeros(F32, n)
        for b0 in range(0, blocks_in_row, 8):
            blocks = min(8, blocks_in_row - b0)
            d = d_of(p, blocks)
            acc = tile_zeros(F32, n)
            for b in range(blocks):
                fetch(p + ahead + b * block_bytes)
                acc = add(acc, p, blocks, b, d, rec, start)
            total = total + add_mins(end(acc, d), p, blocks, rec)
            p += blocks * block_bytes + fixed
            rec += stride
        return fma(total, load(F32, first), tile_zeros(F32, n)) if header else total

    return dot


def prefetch_lines(lines: int):
    """Function (address): ask for `lines` cache lines."""
    from numba import types

    @ops.op(lambda addr: types.void)
    def fetch(b, sig, addr):
        for i in range(lines):
            ops.emit_prefetch(b, b.add(addr, addr.type(64 * i)))

    return fetch


def prefetch_columns(n: int, lines: int):
    """Function (address, stride): ask for `lines` lines at address + c * stride for n columns, to be written."""
    from numba import types

    @ops.op(lambda addr, stride: types.void)
    def fetch(b, sig, addr, stride):
        for c in range(n):
            for i in range(lines):
                ops.emit_prefetch(b, b.add(ops.emit_offset(b, addr, stride, c), addr.type(64 * i)), write=True)

    return fetch


def column_reader(q):
    """Function (address) -> F32: one column of W rows of a float panel."""
    vec = Vec({"f32": "f32", "f16": "f16", "bf16": "u16"}[q.elem], LANES)
    if q.elem == "bf16":

        @inline
        def read(p):
            return bf16_to_f32(load(vec, p))
    else:

        @inline
        def read(p):
            return cast(F32, load(vec, p))

    return read


def _float_panel(q, n: int):
    read, step = column_reader(q), LANES * q.n_bytes
    even_odd, fetch = 2 * step, prefetch_lines(max(2 * step // 64, 1))

    @inline
    def dot(w, panel, k, rec, stride, start):
        p = w + panel * k * step
        total = tile_zeros(F32, n)
        for k0 in range(0, k, SLICE):
            width = min(SLICE, k - k0)
            even, odd = tile_zeros(F32, n), tile_zeros(F32, n)
            for i in range(0, width - 1, 2):
                fetch(p + AHEAD * 2048)
                even = fma(tile_splat(F32, n, rec + i * (4 * n), 4), read(p), even)
                odd = fma(tile_splat(F32, n, rec + (i + 1) * (4 * n), 4), read(p + step), odd)
                p += even_odd
            if width & 1:
                even = fma(tile_splat(F32, n, rec + (width - 1) * (4 * n), 4), read(p), even)
                p += step
            total = total + (even + odd)
            rec += stride
        return total

    return dot
