"""IQ3_S: 256 weights in 110 bytes, 3.4375 bits per weight: rows of a grid of 512 x 4 values, sign bits,
a scale per 32."""

from ... import simd
from ..base import quant
from ..grids import IQ3_S_GRID, IQ3_S_VALUES, signed_levels
from ..shared import grid8, nibble


def pair(grid, p, high, i):
    """Rows number i and i + 1 of the eight at p; `high` holds the ninth bits of their numbers."""
    x, y = simd.load_u8(p + i) | ((high >> i) & 1) << 8, simd.load_u8(p + i + 1) | ((high >> (i + 1)) & 1) << 8
    return grid8(grid, x, y)


@quant(
    block=256, wider=True, bits=4, zero=15, levels=signed_levels(IQ3_S_VALUES), scales="odd4",
    d="f16", qs="u8[64]", qh="u8[8]", signs="u8[32]", sc="u8[4]",
)  # fmt: skip
class IQ3_S:
    def codes(b, j):
        p, high, grid = b.qs + 8 * j, simd.load_u8(b.qh + j), IQ3_S_GRID()
        first = simd.bytes16(pair(grid, p, high, 0), pair(grid, p, high, 2))
        second = simd.bytes16(pair(grid, p, high, 4), pair(grid, p, high, 6))
        return simd.join(first, second) | simd.bits32(simd.load_u32(b.signs + 4 * j)) << 3

    def scale(b, j):
        return nibble(b.sc, j)
