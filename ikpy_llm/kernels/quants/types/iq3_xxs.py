"""IQ3_XXS: 256 weights in 98 bytes, 3.0625 bits per weight: rows of a grid of 256 x 4 values, signs, a scale per 32."""

from ... import simd
from ..base import quant
from ..grids import IQ3_XXS_GRID, IQ3_XXS_VALUES, SIGNS, signed_levels
from ..shared import four_signs, grid8


def pair(grid, p):
    """The two rows whose numbers stand at p."""
    return grid8(grid, simd.load_u8(p), simd.load_u8(p + 1))


@quant(
    block=256, wider=True, bits=4, zero=62, levels=signed_levels(IQ3_XXS_VALUES), scales="odd4", unit=1 / 4,
    d="f16", qs="u8[64]", sas="u8[32]",
)  # fmt: skip
class IQ3_XXS:
    def codes(b, j):
        p, grid = b.qs + 8 * j, IQ3_XXS_GRID()
        x, y, z, w = pair(grid, p), pair(grid, p + 2), pair(grid, p + 4), pair(grid, p + 6)
        signs = simd.bits32(four_signs(SIGNS(), simd.load_u32(b.sas + 4 * j)))
        return simd.join(simd.bytes16(x, y), simd.bytes16(z, w)) | signs << 3

    def scale(b, j):
        return simd.load_u32(b.sas + 4 * j) >> 28
