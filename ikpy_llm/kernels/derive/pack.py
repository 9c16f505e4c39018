"""Weave a matrix from the file's rows into panels."""

from __future__ import annotations

import numpy as np

from ..quants import get
from ..simd import ops
from ..simd.ops import LANES, stack
from .finite import finite_row
from .layout import NIBBLES, PanelLayout
from .panels import holds_levels, rows_to_tile, tile_to_codes
from .rows import row_functions


def pack(type: str):
    """words: src (file rows), row_stride bytes, rows, k, dst (panels), bad: 0 or an int64 that becomes the number of a
    row that is not finite, counted from 1. Splits the panels between threads; rows past the end become zero rows."""
    q = get(type)
    return _pack_plain(q) if q.is_float else _pack_quant(q)


def _pack_quant(q):
    layout, rows = PanelLayout(q, LANES), row_functions(q)
    to_tile, to_codes, buffer = rows_to_tile(q, decoded=holds_levels(q)), tile_to_codes(q), stack(32 * LANES)
    lanes, block_bytes, per_block = LANES, q.n_bytes, max(q.block // 32, 1)
    code_bytes, subs = layout.code_bytes, layout.subs
    min_base = code_bytes + layout.scale_bytes
    fixed, panel_block, header, meta = layout.fixed_bytes, layout.block_bytes, layout.header_bytes, q.meta
    row_scale, gain = rows.row, np.float32(q.gain)
    store_scale = _scale_store(q, layout, rows)
    store_min = _min_store(q, layout, rows)
    store_fixed = _fixed_store(q, rows)
    store_shift = _shift_store(q, rows, (layout.fixed_bytes - 2 * LANES) if q.shift_words else 0)
    check = _check(q)

    def pack(src, row_stride, n_rows, k, dst, bad, ith, nth):
        tile = buffer()
        n_blocks = k // 32
        panel_bytes = header + n_blocks * panel_block + (n_blocks + 7) // 8 * fixed
        n_panels = (n_rows + lanes - 1) // lanes
        for panel in range(ith, n_panels, nth):
            first = src + panel * lanes * row_stride + meta
            valid = min(lanes, n_rows - panel * lanes)
            p = dst + panel * panel_bytes
            if header:
                for r in range(lanes):
                    ops.store_f32(
                        p + 4 * r, row_scale(first - meta + r * row_stride) * gain if r < valid else np.float32(0)
                    )
            p += header
            for b0 in range(0, n_blocks, 8):
                n = min(8, n_blocks - b0)
                for b in range(n):
                    at = (b0 + b) // per_block * block_bytes
                    j0 = (b0 + b) % per_block * subs
                    to_tile(first + at, row_stride, valid, j0, tile)
                    to_codes(tile, p, n, b)
                    for s in range(subs):
                        j = b * subs + s
                        for r in range(lanes):
                            block = first + at + r * row_stride
                            store_scale(p + n * code_bytes, j, r, block, j0 + s, r < valid)
                            store_min(p + n * min_base, j, r, block, j0 + s, r < valid)
                            store_shift(p + n * panel_block, j, r, block, j0 + s, r < valid)
                for r in range(lanes):
                    store_fixed(
                        p + n * panel_block, r, first + b0 // per_block * block_bytes + r * row_stride, r < valid
                    )
                p += n * panel_block + fixed
            check(src, row_stride, panel * lanes, valid, k, bad)

    return pack


def _check(q):
    """Function (rows, stride, first row, number of rows, k, bad): tells of those just read, which are in the cache."""
    is_finite = finite_row(q)

    @ops.inline
    def check(src, row_stride, first, n, k, bad):
        if bad != 0:
            for r in range(first, first + n):
                if not is_finite(src + r * row_stride, k):
                    ops.store_i64(bad, r + 1)

    return check


def _scale_store(q, layout, rows):
    """Function (address of the super-block's scales, j, row, block address, j in the block, valid). In 4-bit packing
    the minimum of a sub-block, or the scale of the next one, shares the byte."""
    lanes, group, sub = LANES, q.group, q.sub
    scale, scale_int, floor_int, shifted = rows.scale, rows.scale_int, rows.floor_int, rows.shifted
    if q.scales == "one":

        @ops.inline
        def put(at, j, r, block, jj, valid):
            pass
    elif q.scales == "f16":

        @ops.inline
        def put(at, j, r, block, jj, valid):
            ops.store_f16(at + 2 * (j * sub // group * lanes + r), scale(block, jj) if valid else np.float32(0))
    elif layout.packed_mins:

        @ops.inline
        def put(at, j, r, block, jj, valid):
            ops.store_u8(at + j * lanes + r, (scale_int(block, jj) | floor_int(block, jj) << 4) if valid else 0)
    elif q.scales in ("i7", "odd7"):

        @ops.inline
        def put(at, j, r, block, jj, valid):
            ops.store_u8(at + j * lanes + r, (scale_int(block, jj) << 1 | shifted(block, jj)) if valid else 0)
    elif q.scales in NIBBLES:

        @ops.inline
        def put(at, j, r, block, jj, valid):
            p, nibble = at + (j >> 1) * lanes + r, scale_int(block, jj) if valid else 0
            ops.store_u8(p, (ops.load_u8(p) | nibble << 4) if j & 1 else nibble)
    else:

        @ops.inline
        def put(at, j, r, block, jj, valid):
            ops.store_u8(at + j * lanes + r, scale_int(block, jj) if valid else 0)

    return put


def _min_store(q, layout, rows):
    """Function (address of the super-block's mins, j, row, block address, j in the block, valid)."""
    lanes = LANES
    if q.mins is None or layout.packed_mins:

        @ops.inline
        def put(at, j, r, block, jj, valid):
            pass
    elif q.mins == "f16":
        floor = rows.floor

        @ops.inline
        def put(at, j, r, block, jj, valid):
            ops.store_f16(at + 2 * (j * lanes + r), -floor(block, jj) if valid else np.float32(0))
    else:
        floor_int = rows.floor_int

        @ops.inline
        def put(at, j, r, block, jj, valid):
            ops.store_u8(at + (j >> 1) * (2 * lanes) + 2 * r + (j & 1), floor_int(block, jj) if valid else 0)

    return put


def _fixed_store(q, rows):
    """Function (address of d, row, block address, valid)."""
    d, dmin, lanes = rows.d, rows.dmin, LANES
    if not q.block_d:

        @ops.inline
        def put(at, r, block, valid):
            pass
    elif dmin is None:

        @ops.inline
        def put(at, r, block, valid):
            ops.store_f16(at + 2 * r, d(block) if valid else np.float32(0))
    else:

        @ops.inline
        def put(at, r, block, valid):
            ops.store_f16(at + 2 * r, d(block) if valid else np.float32(0))
            ops.store_f16(at + 2 * lanes + 2 * r, dmin(block) if valid else np.float32(0))

    return put


def _shift_store(q, rows, offset: int):
    """Function (address of d, sub-block of the super-block, row, block address, j in the block, valid)."""
    shifted = rows.shifted
    if not q.shift_words:

        @ops.inline
        def put(at, j, r, block, jj, valid):
            pass
    else:

        @ops.inline
        def put(at, j, r, block, jj, valid):
            p, bit = at + offset + 2 * r, shifted(block, jj) << j if valid else 0
            ops.store_i16(p, ops.load_u16(p) | bit if j else bit)

    return put


def _pack_plain(q):
    lanes, size = LANES, q.n_bytes
    get_word, put_word = (ops.load_i32, ops.store_i32) if size == 4 else (ops.load_i16, ops.store_i16)

    check = _check(q)

    def pack(src, row_stride, n_rows, k, dst, bad, ith, nth):
        n_panels = (n_rows + lanes - 1) // lanes
        for panel in range(ith, n_panels, nth):
            p = dst + panel * lanes * k * size
            valid = min(lanes, n_rows - panel * lanes)
            for r in range(lanes):
                row = src + (panel * lanes + r) * row_stride
                for c in range(k):
                    put_word(p + (c * lanes + r) * size, get_word(row + c * size) if r < valid else 0)
            check(src, row_stride, panel * lanes, valid, k, bad)

    return pack
