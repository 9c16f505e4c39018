"""Product of a matrix with many activation columns: prompts. Bound by the dot-product unit.

For a group of panels and a slice of 256 columns the weights are decoded once into a small buffer (u8 codes, f32 scales)
that stays in the first-level cache and is used for all tiles of activation columns; totals wait in scratch memory
between slices. So all types reach the same inner loop: per 32 columns and activation column 8 dot products and two fma
(the first converts and applies the activations' scale at once, see layout.py), or one conversion and one fma where
integer scales are part of the sums (layout.chunk). gemm_quant.py has these, gemm_float.py those of float types.
"""

from __future__ import annotations

import functools

from ..quants import get
from ..simd.ops import F32, LANES, inline, load_i64, stack, tile_load, tile_store, tile_zeros
from ..simd.threads import atomic_add
from . import gemm_float, gemm_quant
from .gemv import prefetch_columns
from .layout import SLICE, gemm_tile
from .output import column_writer
from .row_scales import row_scales_of, scaled_rows
from .tileops import panel_of

VECTOR = 4 * LANES  # bytes
T = gemm_tile()


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
    part = gemm_float if is_float else gemm_quant
    (decode, tile_step, ahead), side, n_decoded = part.steps(q, rows_layout), part.NP, part.N_DECODED
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
