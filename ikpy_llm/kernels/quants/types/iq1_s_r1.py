"""Rows of IQ1_S_R4: 32 weights in 6 bytes, 1.5 bits per weight, and a scale per row: values of IQ1_S, in eighths."""

from ... import simd
from ..base import quant
from ..grids import IQ1_GRID
from ..shared import EIGHTHS, grid16


@quant(
    block=32, wider=True, row="f16", bits=3, zero=9, levels=EIGHTHS, scales="u8", unit=1 / 8, qs="u8[4]", qh="u16",
)  # fmt: skip
class IQ1_S_R1:
    def codes(b, j):
        grid, h = IQ1_GRID(), b.qh
        w, x = simd.load_u8(b.qs) | (h & 7) << 8, simd.load_u8(b.qs + 1) | ((h >> 3) & 7) << 8
        y, z = simd.load_u8(b.qs + 2) | ((h >> 6) & 7) << 8, simd.load_u8(b.qs + 3) | ((h >> 9) & 7) << 8
        return simd.join(grid16(grid, w, x), grid16(grid, y, z)) | (b.qh >> 15) << 2

    def scale(b, j):
        return 2 * ((b.qh >> 12) & 7) + 1
