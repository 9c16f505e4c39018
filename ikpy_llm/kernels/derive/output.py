"""Writing a tile of results: W rows of each of n columns, with bias and residual, and a last panel that is only
partly there."""

from __future__ import annotations

from ..simd import ops
from ..simd.ops import F32, LANES, inline, load, stack, tile_load, tile_store


def column_writer(n: int):
    """Function (F32 tile of n, y, y_stride, row, rows, bias, residual): y[c][row .. row+W) for each column c, plus
    bias[row] and residual[c][row] where their addresses are not 0; rows past `rows` are left out."""
    lanes, vector, buffer = LANES, 4 * LANES, stack(n * 4 * LANES)

    @inline
    def write(total, y, y_stride, row, rows, bias_at, residual_at):
        at, step = y + 4 * row, 4 * y_stride
        if rows - row >= lanes:
            if bias_at != 0:
                total = total + load(F32, bias_at + 4 * row)
            if residual_at != 0:
                total = total + tile_load(F32, n, residual_at + 4 * row, step)
            tile_store(at, step, total)
        else:
            temp = buffer()
            tile_store(temp, vector, total)
            for c in range(n):
                for r in range(rows - row):
                    value = ops.load_f32(temp + c * vector + 4 * r)
                    if bias_at != 0:
                        value += ops.load_f32(bias_at + 4 * (row + r))
                    if residual_at != 0:
                        value += ops.load_f32(residual_at + 4 * (row + r) + c * step)
                    ops.store_f32(at + 4 * r + c * step, value)

    return write
