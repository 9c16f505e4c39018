"""Product of a matrix with many activation columns: prompts. Bound by the dot-product unit.

For a group of panels and a slice of 256 columns the weights are decoded once into a small buffer (u8 codes, f32 scales)
that stays in the first-level cache and is used for all tiles of activation columns; totals wait in scratch memory
between slices. So all types reach the same inner loop: per 32 columns and activation column 8 dot products and two fma
(the first converts and applies the activations' scale at once, see layout.py), or one conversion and one fma where
integer scales are part of the sums (layout.chunk). Float types: gemm_float.py.
"""

from __future__ import annotations

import functools

import numpy as np

from ..quants import get
from ..simd import ops
from ..simd.dots import Dots
from ..simd.ops import (
    F32,
    I32V,
    LANES,
    U8,
    cast,
    inline,
    load_i64,
    prefetch,
    stack,
    store,
    tile_load,
    tile_splat,
    tile_store,
    tile_zeros,
)
from ..simd.threads import atomic_add
from . import gemm_float
from .gemv import prefetch_columns, prefetch_lines
from .layout import MIN_UNIT, SLICE, ActsLayout, PanelLayout, chunk, flavour, gemm_panels, gemm_tile, scaled_as_integers
from .output import column_writer
from .panels import decode_block, int_scale_reader, min_reader, rows_to_tile, scale_reader
from .row_scales import row_scales_of, scaled_rows
from .rows import row_functions, scale_integer
from .tileops import (
    block_dots,
    block_dots_float,
    codes_to_store,
    dot2_panels,
    fma_panels,
    fma_splat_panels,
    mul_panels,
    over_panels,
    panel_of,
    plain_index,
    scaled_dots,
)

VECTOR = 4 * LANES  # bytes
NP, T = gemm_panels(), gemm_tile()
# decoded slice of a panel: codes u8[64][W][4]; scales f32[256/sub][W], or integers i16[8][W][2], those of two
# sub-blocks or one twice; minimums; f32[W]: -dmin / MIN_UNIT; and f32[W]: what integer scales are multiples of
N_CODES, N_SCALES, N_MINS = 64 * VECTOR, 16 * VECTOR, 8 * VECTOR
O_MINS = N_CODES + N_SCALES
O_D = O_MINS + N_MINS + VECTOR
N_DECODED = O_D + VECTOR


def gemm(type: str, rows_layout: bool = False):
    """words: w (panels, or file rows with rows_layout), row_stride bytes (rows_layout), acts, stride, start,
    y f32 [n][y_stride], y_stride (elements), rows, k, bias or 0, residual (like y) or 0, scratch,
    scratch_bytes (per thread), state (word 0 = n), claim (a counter that is 0, or 0).

    acts are tiles of layout.gemm_tile() columns. Every thread takes a run of panels, gemm_panels() at a time; with a
    claim counter the last quarter of the matrix goes to whoever comes first, so that a thread whose core is busy with
    something else does not hold up the others.
    scratch_bytes >= layout.gemm_scratch_bytes(n).
    """
    q = get(type)
    is_float, lanes = q.is_float, LANES
    decode, tile_step, ahead = (gemm_float.steps if is_float else _quant_steps)(q, rows_layout)
    side, n_decoded = (gemm_float.NP, gemm_float.N_DECODED) if is_float else (NP, N_DECODED)  # panels side by side
    buffer, row_buffer, row_scales = stack(side * n_decoded), stack(side * VECTOR), row_scales_of(q, rows_layout, side)
    write, scale_rows, fetch_y = group_writer(side), scaled_rows(q, side, T), prefetch_columns(T, side)
    group_bytes, n_vectors = side * T * VECTOR, side * T

    def gemm(
        w,
        row_stride,
        acts,
        stride,
        start,
        y,
        y_stride,
        rows,
        k,
        bias_at,
        residual_at,
        scratch,
        scratch_bytes,
        state,
        claim,
        ith,
        nth,
    ):
        n = load_i64(state)
        n_tiles = (n + T - 1) // T
        n_panels = (rows + lanes - 1) // lanes
        n_groups = (n_panels + side - 1) // side
        totals = scratch + ith * scratch_bytes
        weights, by_rows = buffer(), row_buffer()
        dealt = n_groups if claim == 0 or nth == 1 else n_groups - n_groups // 4
        group, end = dealt * ith // nth, dealt * (ith + 1) // nth
        while True:
            if group >= end:
                group = dealt + atomic_add(claim, 1) if dealt < n_groups else n_groups
                end = group + 1
                if group >= n_groups:
                    break
            row = group * side * lanes
            for k0 in range(0, k, SLICE):
                blocks = min(SLICE, k - k0) if is_float else min(8, (k - k0) // 32)
                for p in range(side):
                    panel = min(group * side + p, n_panels - 1)
                    decode(w, row_stride, panel, rows, k, k0, blocks, weights + p * n_decoded)
                rec = acts + k0 // SLICE * n_tiles * stride
                at = totals
                ends = k0 + SLICE >= k
                if ends:
                    row_scales(w, row_stride, group * side, rows, k, by_rows)
                for tile in range(n_tiles):
                    ahead(w, group * side, k, k0, tile, n_tiles)
                    if ends:
                        fetch_y(y + 4 * (tile * T * y_stride + row), 4 * y_stride)
                    sums = tile_step(weights, blocks, rec, start, rec + stride)
                    total = tile_zeros(F32, n_vectors)
                    if k0 > 0:
                        total = tile_load(F32, n_vectors, at, VECTOR)
                    total = total + sums
                    if ends:
                        total = scale_rows(total, by_rows)
                        write(total, y, y_stride, tile * T, row, rows, n, bias_at, residual_at, at)
                    else:
                        tile_store(at, VECTOR, total)
                    at += group_bytes
                    rec += stride
            group += 1

    return gemm


def weights_ahead(q, rows_layout: bool):
    """Function (w, first panel, k, k0, tile, n_tiles): ask for this tile's share of the next slice of NP panels, so
    that decoding finds it in cache."""
    if rows_layout:

        @inline
        def nothing(w, panel, k, k0, tile, n_tiles):
            pass

        return nothing
    layout = PanelLayout(q, LANES)
    block_bytes, fixed, header = layout.block_bytes, layout.fixed_bytes, layout.header_bytes

    @inline
    def ahead(w, panel, k, k0, tile, n_tiles):
        n = k // 32
        panel_bytes = header + n * block_bytes + (n + 7) // 8 * fixed
        size = 8 * block_bytes + fixed
        p = w + panel * panel_bytes + header + (k0 // SLICE + 1) * size
        if k0 + SLICE >= k:
            p = w + (panel + NP) * panel_bytes
        for offset in range(size * tile // n_tiles // 64 * 64, size * (tile + 1) // n_tiles, 64):
            for i in range(NP):
                prefetch(p + i * panel_bytes + offset)

    return ahead


def group_writer(n_panels: int):
    """Function: the panels of a tile, each with tile_writer, as far as there are rows."""
    one = tile_writer()

    @inline
    def none(total, y, y_stride, first, row, rows, n, bias_at, residual_at, temp):
        pass

    def then(before, panel):
        pick, ahead = panel_of(n_panels, T, panel), panel * LANES

        @inline
        def write(total, y, y_stride, first, row, rows, n, bias_at, residual_at, temp):
            before(total, y, y_stride, first, row, rows, n, bias_at, residual_at, temp)
            if row + ahead < rows:
                one(pick(total), y, y_stride, first, row + ahead, rows, n, bias_at, residual_at, temp)

        return write

    return functools.reduce(then, range(n_panels), none)


def tile_writer():
    """Function: columns first .. first+T of one panel to y; a last tile that is not full goes column by column."""
    whole, one = column_writer(T), column_writer(1)

    @inline
    def write(total, y, y_stride, first, row, rows, n, bias_at, residual_at, temp):
        shift = 4 * first * y_stride
        if n - first >= T:
            whole(total, y + shift, y_stride, row, rows, bias_at, residual_at + shift if residual_at != 0 else 0)
        else:
            tile_store(temp, VECTOR, total)
            for c in range(n - first):
                shift = 4 * (first + c) * y_stride
                column = tile_load(F32, 1, temp + c * VECTOR, 0)
                one(column, y + shift, y_stride, row, rows, bias_at, residual_at + shift if residual_at != 0 else 0)

    return write


def _quant_steps(q, rows_layout: bool):
    return (_decode_rows(q) if rows_layout else _decode_panel(q)), _quant_tile(q), weights_ahead(q, rows_layout)


def _decode_panel(q):
    """Function (w, _, panel, rows, k, k0, blocks, dst): one slice of a woven panel to codes, scales and minimums."""
    layout = PanelLayout(q, LANES)
    block, (d_of, put_scales), mins = decode_block(q), _scale_store(q), min_reader(q)
    block_bytes, fixed, subs, header = layout.block_bytes, layout.fixed_bytes, layout.subs, layout.header_bytes
    int_mins, float_mins = q.int_mins, q.mins == "f16"
    pairs, unit = mins if int_mins else (None, None)

    @inline
    def put_mins(p, blocks, dst):
        if int_mins:
            for jj in range(blocks * subs // 2):
                store(dst + jj * VECTOR, pairs(p, blocks, jj))
            store(dst + N_MINS, unit(p, blocks))
        if float_mins:
            for j in range(blocks):
                store(dst + j * VECTOR, mins(p, blocks, j))

    @inline
    def decode(w, row_stride, panel, rows, k, k0, blocks, dst):
        n = k // 32
        p = w + panel * (header + n * block_bytes + (n + 7) // 8 * fixed) + header
        p += k0 // 32 * block_bytes + k0 // SLICE * fixed
        d = d_of(p, blocks)
        store(dst + O_D, d)
        for b in range(blocks):
            tile_store(dst + b * (8 * VECTOR), VECTOR, block(p, blocks, b))
            put_scales(dst + N_CODES, p, blocks, b, d)
        put_mins(p, blocks, dst + O_MINS)

    return decode


def _scale_store(q):
    """Functions d(super-block, blocks) and put(scales of the slice, super-block, blocks, block, d)."""
    subs, int_scales = 32 // q.sub, scaled_as_integers(q.name)
    d_of, scale = int_scale_reader(q) if int_scales else scale_reader(q)
    if int_scales:

        @inline
        def put(dst, p, blocks, b, d):
            store(dst + b * VECTOR, scale(p, blocks, b))
    else:

        @inline
        def put(dst, p, blocks, b, d):
            for s in range(subs):
                store(dst + (b * subs + s) * VECTOR, scale(p, blocks, b * subs + s, d))

    return d_of, put


def _decode_rows(q):
    """The same from rows in the layout of the file (weights that were not woven)."""
    rows_of, to_tile = row_functions(q), rows_to_tile(q, decoded=True)
    floor, floor_int, dmin = rows_of.floor, rows_of.floor_int, rows_of.dmin
    per_block, block_bytes, subs, lanes = max(q.block // 32, 1), q.n_bytes, 32 // q.sub, LANES
    meta, centred, kept = q.meta, Dots(q.top).centred, codes_to_store(q.top)
    put_scale, put_d = _row_scale_store(q, rows_of)
    put_min = _row_min_store(q, floor, floor_int)
    put_unit = _row_unit_store(dmin, q.unit)

    @inline
    def decode(w, row_stride, panel, rows, k, k0, blocks, dst):
        first = w + panel * lanes * row_stride + meta
        valid = min(lanes, rows - panel * lanes)
        for b in range(blocks):
            index = k0 // 32 + b
            at, j0 = first + index // per_block * block_bytes, index % per_block * subs
            to_tile(at, row_stride, valid, j0, dst + b * (8 * VECTOR))
            if centred:
                tile = dst + b * (8 * VECTOR)
                tile_store(tile, VECTOR, kept(tile_load(U8, 8, tile, VECTOR)))
            for r in range(valid):
                for s in range(subs):
                    j = b * subs + s
                    put_scale(dst + N_CODES + 4 * r, b, s, at + r * row_stride, j0 + s)
                    put_min(dst + O_MINS, j, r, at + r * row_stride, j0 + s)
        for r in range(valid):
            at = first + k0 // 32 // per_block * block_bytes + r * row_stride
            put_unit(dst + O_MINS + N_MINS + 4 * r, at)
            put_d(dst + O_D + 4 * r, at)

    return decode


def _row_scale_store(q, rows_of):
    """Functions put(the row's scales of the slice, block, sub-block of it, its address and number there) and (dst,
    address of a block), which stores what integer scales are multiples of."""
    scale, scale_int, d, integer, unit = rows_of.scale, rows_of.scale_int, rows_of.d, scale_integer(q.scales), q.unit
    subs = 32 // q.sub
    if not scaled_as_integers(q.name):

        @inline
        def put(dst, b, s, block, j):
            ops.store_f32(dst + (b * subs + s) * VECTOR, scale(block, j))

        @inline
        def put_d(dst, block):
            pass
    else:

        @inline
        def put(dst, b, s, block, j):
            x, at = integer(scale_int(block, j)), dst + b * VECTOR
            ops.store_i16(at + 2 * s, x)
            if subs == 1:
                ops.store_i16(at + 2, x)

        @inline
        def put_d(dst, block):
            ops.store_f32(dst, d(block) * np.float32(unit))

    return put, put_d


def _row_min_store(q, floor, floor_int):
    if q.mins is None:

        @inline
        def put(dst, j, r, block, jj):
            pass
    elif q.mins == "f16":

        @inline
        def put(dst, j, r, block, jj):
            ops.store_f32(dst + j * VECTOR + 4 * r, -floor(block, jj))
    else:

        @inline
        def put(dst, j, r, block, jj):
            ops.store_i16(dst + (j >> 1) * VECTOR + 4 * r + 2 * (j & 1), floor_int(block, jj))

    return put


def _row_unit_store(dmin, unit: float):
    factor = np.float32(-unit / MIN_UNIT)
    if dmin is None:

        @inline
        def put(at, block):
            pass
    else:

        @inline
        def put(at, block):
            ops.store_f32(at, dmin(block) * factor)

    return put


def _quant_tile(q):
    """Function (decoded slice, blocks, record, start, next record) -> its sums for NP panels x T columns."""
    acts, subs = ActsLayout(T), 32 // q.sub
    (block_of, end), rescaled = _block_step(q), fma_panels(NP, T)
    repeated = over_panels(NP, T, F32)
    n_vectors, o_scales, o_unit, o_sums = NP * T, acts.scales, acts.unit, acts.sums
    o_pairs = acts.sums32 if subs == 1 else acts.sums16
    int_mins, float_mins, pair_dot = q.int_mins, q.mins == "f16", dot2_panels(NP, T)
    minus, fetch = fma_splat_panels(NP, T), prefetch_lines(-(-32 * T // 64))

    @inline
    def with_mins(acc, weights, i, rec):
        if float_mins:
            return minus(rec + o_sums + i * (T // 4), weights + O_MINS + i * (VECTOR // 16), N_DECODED, acc)
        return acc

    @inline
    def slice_mins(acc, weights, blocks, rec):
        if int_mins:
            isum = tile_zeros(I32V, n_vectors)
            for jj in range(blocks * subs // 2):
                isum = pair_dot(isum, weights + O_MINS + jj * VECTOR, N_DECODED, rec + o_pairs + jj * (4 * T))
            sums = cast(F32, isum) * repeated(tile_splat(F32, T, rec + o_unit, 4))
            return rescaled(sums, weights + (O_MINS + N_MINS), N_DECODED, acc)
        return acc

    @inline
    def step(weights, blocks, rec, start, following):
        acc = tile_zeros(F32, n_vectors)
        for b in range(blocks):
            i, j = plain_index(16 * b), plain_index(8 * VECTOR * b)
            fetch(following + i * (2 * T))
            prefetch(following + o_scales + i * 4)
            acc = with_mins(block_of(acc, weights, i, j, rec, start), weights, i, rec)
        return slice_mins(end(acc, weights), weights, blocks, rec)

    return step


def _block_step(q):
    """Functions (acc, decoded slice, 16 * block, offset of its codes, record, start) -> acc plus the block's products,
    and (acc, decoded slice) -> their sum over the slice."""
    acts, subs, zero, width = ActsLayout(T), 32 // q.sub, flavour(q.name)[0], chunk(q.name)
    o_scales, to_offsets = acts.scales, acts.offsets - acts.scales

    @inline
    def as_it_is(acc, weights):
        return acc

    if width:
        as_integers, times = scaled_as_integers(q.name), mul_panels(NP, T)
        block_dot = (block_dots if as_integers else functools.partial(block_dots_float, subs=subs))(
            n_panels=NP, t=T, chunk=width, top=q.top, zero=zero
        )
        step, n_scales = 32 // width * T // 4, (1 if as_integers else subs) * VECTOR // 16

        @inline
        def block_of(acc, weights, i, j, rec, start):
            scales, codes, d = weights + N_CODES + i * n_scales, rec + i * (2 * T), rec + o_scales + i * (T // 4)
            return block_dot(acc, weights + j, N_DECODED, rec + start + i * step, codes, d, scales)

        @inline
        def end(acc, weights):
            return times(acc, weights + O_D, N_DECODED)

        return block_of, end if as_integers else as_it_is
    dots = scaled_dots(NP, T, 8 // subs, q.top, zero)

    @inline
    def scaled_block(acc, weights, i, j, rec, start):
        codes, scales, d = (
            rec + i * (2 * T),
            weights + N_CODES + i * (subs * VECTOR // 16),
            rec + o_scales + i * (T // 4),
        )
        at, start0 = weights + j, rec + start + i * (subs * T // 4)
        if subs == 1:
            return dots(acc, at, N_DECODED, start0, codes, d, to_offsets, scales)
        acc = dots(acc, at, N_DECODED, start0, codes, d, to_offsets, scales)
        return dots(acc, at + 4 * VECTOR, N_DECODED, start0 + 4 * T, codes + 16 * T, d, to_offsets, scales + VECTOR)

    return scaled_block, as_it_is
