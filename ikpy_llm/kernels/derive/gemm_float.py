"""The float types' part of gemm: a slice of each panel is widened to f32 [256][W] once. A tile of activation columns
runs over its even and then over its odd columns, which gemv sums apart: so the sums of a run fit the registers.
"""

from __future__ import annotations

import numpy as np
from numba import types

from ..simd import memory, ops
from ..simd.core import I32
from ..simd.ops import F32, LANES, inline, prefetch_l2, store, tile_zeros
from .dequant import row_decoder
from .gemv import column_reader, prefetch_lines
from .layout import SLICE, float_panels, gemm_tile
from .tileops import fma_splat_panels

NP, T = float_panels(), gemm_tile()
VECTOR = 4 * LANES  # bytes
N_DECODED = SLICE * VECTOR


def steps(q, rows_layout: bool):
    """(decode, tile, ahead) as gemm calls them."""
    return (_decode_rows if rows_layout else _decode_panel)(q), _tile(), _ahead(q, rows_layout)


def _decode_panel(q):
    read, step = column_reader(q), LANES * q.n_bytes

    @inline
    def decode(w, row_stride, panel, rows, k, k0, width, dst):
        p = w + (panel * k + k0) * step
        for c in range(width):
            store(dst + c * VECTOR, read(p + c * step))

    return decode


def _decode_rows(q):
    """The same from rows in the layout of the file."""
    read, one, lanes, size = column_reader(q), row_decoder(q), LANES, q.n_bytes

    @ops.op(lambda at, v: types.void)
    def to_columns(b, sig, at, v):
        for i in range(lanes):
            memory.emit_store(b, b.extract_element(v, I32(i)), b.add(at, at.type(i * VECTOR)))

    @inline
    def decode(w, row_stride, panel, rows, k, k0, width, dst):
        for r in range(min(lanes, rows - panel * lanes)):
            row, whole = w + (panel * lanes + r) * row_stride + k0 * size, width // lanes * lanes
            for c in range(0, whole, lanes):
                to_columns(dst + c * VECTOR + 4 * r, read(row + c * size))
            for c in range(whole, width):
                one(row + c * size, dst + c * VECTOR + 4 * r, 1, np.float32(1))

    return decode


def _tile():
    """Function (widened slices, columns, record, start, next record) -> its sums for NP panels x T columns."""
    evens, odds = _run(True), _run(False)

    @inline
    def tile(weights, width, rec, start, following):
        even = evens(weights, (width + 1) // 2, rec, following)
        return even + odds(weights + VECTOR, width // 2, rec + 4 * T, following)

    return tile


def _run(fetches: bool):
    """Function (weights, n, record, next record): sums over n columns, every second one."""
    add, fetch, n_vectors = fma_splat_panels(NP, T), prefetch_lines(max(16 * T // 64, 1)), NP * T

    @inline
    def step(acc, weights, c, rec):
        return add(rec + c * (8 * T), weights + c * (2 * VECTOR), N_DECODED, acc)

    @inline
    def run(weights, n, rec, following):
        acc = tile_zeros(F32, n_vectors)
        for c in range(0, n - 1, 2):
            if fetches:
                fetch(following + c * (8 * T))
            acc = step(step(acc, weights, c, rec), weights, c + 1, rec)
        return step(acc, weights, n - 1, rec) if n & 1 else acc

    return run


def _ahead(q, rows_layout: bool):
    """As gemm_quant._ahead."""
    if rows_layout:

        @inline
        def nothing(w, panel, k, k0, tile, n_tiles):
            pass

        return nothing
    step = LANES * q.n_bytes

    @inline
    def ahead(w, panel, k, k0, tile, n_tiles):
        size = min(SLICE, k) * step
        p = w + (panel * k + k0 + SLICE) * step
        if k0 + SLICE >= k:
            p = w + (panel + NP) * k * step
        for offset in range(size * tile // n_tiles // 64 * 64, size * (tile + 1) // n_tiles, 64):
            for i in range(NP):
                prefetch_l2(p + i * k * step + offset)

    return ahead
