"""Scales of whole rows in the prompt kernel: totals of a tile are multiplied by them once, at the end."""

from __future__ import annotations

import numpy as np

from ..simd import ops
from ..simd.ops import F32, LANES, inline, store, tile_zeros
from .layout import PanelLayout
from .rows import row_functions
from .tileops import fma_panels

VECTOR = 4 * LANES


def row_scales_of(q, rows_layout: bool, n_panels: int):
    """Function (w, row_stride, first panel, rows, k, dst): the scales of the rows as f32[n_panels][W]; nothing for
    types without."""
    if q.is_float or q.row is None:

        @inline
        def none(w, row_stride, panel, rows, k, dst):
            pass

        return none
    layout, of_row, gain, lanes = PanelLayout(q, LANES), row_functions(q).row, np.float32(q.gain), LANES
    block_bytes, fixed, header = layout.block_bytes, layout.fixed_bytes, layout.header_bytes

    @inline
    def scales(w, row_stride, panel, rows, k, dst):
        n = k // 32
        for i in range(n_panels):
            if rows_layout:
                first = (panel + i) * lanes
                for r in range(min(lanes, rows - first)):
                    ops.store_f32(dst + i * VECTOR + 4 * r, of_row(w + (first + r) * row_stride) * gain)
            elif (panel + i) * lanes < rows:
                at = w + (panel + i) * (header + n * block_bytes + (n + 7) // 8 * fixed)
                store(dst + i * VECTOR, ops.load(F32, at))

    return scales


def scaled_rows(q, n_panels: int, t: int):
    """Function (totals of n_panels panels x t columns, scales of their rows) -> their product."""
    if q.is_float or q.row is None:

        @inline
        def same(total, at):
            return total

        return same
    scaled, n_vectors = fma_panels(n_panels, t), n_panels * t

    @inline
    def by_rows(total, at):
        return scaled(total, at, VECTOR, tile_zeros(F32, n_vectors))

    return by_rows
