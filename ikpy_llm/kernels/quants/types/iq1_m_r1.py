"""Rows of IQ1_M_R4: 32 weights in 7 bytes, 1.75 bits per weight, and a scale per row: values of IQ1_M, in eighths."""

from ... import simd
from ..base import quant
from ..grids import IQ1_GRID
from ..shared import EIGHTHS, grid16


@quant(
    block=32, wider=True, row="f16", sub=16, bits=3, zero=9, levels=EIGHTHS, scales="u4", unit=1 / 8,
    qs="u8[4]", qh="u8[2]", sc="u8",
)  # fmt: skip
class IQ1_M_R1:
    def codes(b, j):
        t = simd.load_u8(b.qh + j)
        first, second = simd.load_u8(b.qs + 2 * j) | (t & 7) << 8, simd.load_u8(b.qs + 2 * j + 1) | ((t >> 4) & 7) << 8
        minus = simd.bytes16(((t >> 3) & 1) * 0x0404040404040404, (t >> 7) * 0x0404040404040404)
        return grid16(IQ1_GRID(), first, second) | minus

    def scale(b, j):
        return (b.sc >> 4 * j) & 15
