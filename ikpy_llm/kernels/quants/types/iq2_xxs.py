"""IQ2_XXS: 256 weights in 66 bytes, 2.0625 bits per weight: rows of a grid of 256 x 8 values, signs, a scale per 32."""

from ... import simd
from ..base import quant
from ..grids import IQ2_VALUES, IQ2_XXS_GRID, SIGNS, signed_levels
from ..shared import four_signs, grid16


@quant(
    block=256,
    wider=True,
    bits=3,
    zero=43,
    levels=signed_levels(IQ2_VALUES),
    scales="odd4",
    unit=1 / 8,
    d="f16",
    qs="u8[64]",
)
class IQ2_XXS:
    def codes(b, j):
        p, grid = b.qs + 8 * j, IQ2_XXS_GRID()
        first = grid16(grid, simd.load_u8(p), simd.load_u8(p + 1))
        second = grid16(grid, simd.load_u8(p + 2), simd.load_u8(p + 3))
        return simd.join(first, second) | simd.bits32(four_signs(SIGNS(), simd.load_u32(p + 4))) << 2

    def scale(b, j):
        return simd.load_u32(b.qs + 8 * j + 4) >> 28
