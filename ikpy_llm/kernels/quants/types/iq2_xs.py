"""IQ2_XS: 256 weights in 74 bytes, 2.3125 bits per weight: rows of a grid of 512 x 8 values, signs, a scale per 16."""

from ... import simd
from ..base import quant
from ..grids import IQ2_VALUES, IQ2_XS_GRID, SIGNS, signed_levels
from ..shared import bits16, grid16, nibble


@quant(
    block=256, wider=True, sub=16, bits=3, zero=43, levels=signed_levels(IQ2_VALUES), scales="odd4", unit=1 / 8,
    d="f16", qs="u16[32]", sc="u8[8]",
)  # fmt: skip
class IQ2_XS:
    def codes(b, j):
        x, y = simd.load_u16(b.qs + 4 * j), simd.load_u16(b.qs + 4 * j + 2)
        signs = simd.load_u8(SIGNS() + (x >> 9)) | simd.load_u8(SIGNS() + (y >> 9)) << 8
        return grid16(IQ2_XS_GRID(), x & 511, y & 511) | bits16(signs) << 2

    def scale(b, j):
        return nibble(b.sc, j)
