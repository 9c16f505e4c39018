"""IQ2_S: 256 weights in 82 bytes, 2.5625 bits per weight: rows of a grid of 1024 x 8 values, sign bits,
a scale per 16."""

from ... import simd
from ..base import quant
from ..grids import IQ2_S_GRID, IQ2_VALUES, signed_levels
from ..shared import bits16, grid16, nibble


@quant(
    block=256, wider=True, sub=16, bits=3, zero=43, levels=signed_levels(IQ2_VALUES), scales="odd4", unit=1 / 8,
    d="f16", qs="u8[32]", signs="u8[32]", qh="u8[8]", sc="u8[8]",
)  # fmt: skip
class IQ2_S:
    def codes(b, j):
        high = simd.load_u8(b.qh + (j >> 1)) >> 4 * (j & 1)
        x = simd.load_u8(b.qs + 2 * j) | (high & 3) << 8
        y = simd.load_u8(b.qs + 2 * j + 1) | ((high >> 2) & 3) << 8
        return grid16(IQ2_S_GRID(), x, y) | bits16(simd.load_u16(b.signs + 2 * j)) << 2

    def scale(b, j):
        return nibble(b.sc, j)
