"""The quantized types' part of gemm: a slice of each panel is decoded once into codes, scales and minimums, which stay
in the first-level cache for all tiles of activation columns.
"""

from __future__ import annotations

import numpy as np

from ..simd import ops
from ..simd.dots import Dots
from ..simd.ops import (
    F32,
    I32V,
    LANES,
    U8,
    cast,
    inline,
    prefetch,
    store,
    tile_load,
    tile_splat,
    tile_store,
    tile_zeros,
)
from .gemv import prefetch_lines
from .layout import MIN_UNIT, SLICE, ActsLayout, PanelLayout, chunk, flavour, gemm_panels, gemm_tile, scaled_as_integers
from .panel_scales import int_scale_reader, min_reader, scale_reader
from .panels import decode_block, rows_to_tile
from .rows import row_functions, scale_integer
from .short_dots import block_dots
from .tileops import (
    codes_to_store,
    dot2_panels,
    fma_panels,
    fma_splat_panels,
    mul_panels,
    over_panels,
    plain_index,
    scaled_dots,
)

NP, T = gemm_panels(), gemm_tile()
VECTOR = 4 * LANES  # bytes
# decoded slice of a panel: codes u8[64][W][4]; scales f32[256/sub][W], or integers i16[8][W][2], those of two
# sub-blocks or one twice; minimums; f32[W]: -dmin / MIN_UNIT; and f32[W]: what integer scales are multiples of
N_CODES, N_SCALES, N_MINS = 64 * VECTOR, 16 * VECTOR, 8 * VECTOR
O_MINS = N_CODES + N_SCALES
O_D = O_MINS + N_MINS + VECTOR
N_DECODED = O_D + VECTOR


def steps(q, rows_layout: bool):
    """(decode, tile, ahead) as gemm calls them."""
    return (_decode_rows if rows_layout else _decode_panel)(q), _tile(q), _ahead(q, rows_layout)


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


def _tile(q):
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
        block_dot = block_dots(NP, T, width, q.top, zero, 0 if as_integers else subs)
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


def _ahead(q, rows_layout: bool):
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
