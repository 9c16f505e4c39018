"""IQ1_M: 256 weights in 56 bytes, 1.75 bits per weight: the grid of IQ1_S, the sign of the eighth per 8 columns, a
scale per 16; the bits of d stand in the top nibbles of the scales."""

from ... import simd
from ..base import quant
from ..grids import IQ1_GRID
from ..shared import EIGHTHS, grid16, nibble


@quant(
    block=256, wider=True, sub=16, bits=3, zero=9, levels=EIGHTHS, scales="odd4", unit=1 / 8,
    qs="u8[32]", qh="u8[16]", sc="u16[4]",
)  # fmt: skip
class IQ1_M:
    def codes(b, j):
        x, y = nibble(b.qh, 2 * j), nibble(b.qh, 2 * j + 1)
        first, second = simd.load_u8(b.qs + 2 * j) | (x & 7) << 8, simd.load_u8(b.qs + 2 * j + 1) | (y & 7) << 8
        minus = simd.bytes16((x >> 3) * 0x0404040404040404, (y >> 3) * 0x0404040404040404)
        return grid16(IQ1_GRID(), first, second) | minus

    def scale(b, j):
        return (simd.load_u16(b.sc + 2 * (j >> 2)) >> 3 * (j & 3)) & 7

    def d(b):
        low = simd.load_u16(b.sc) >> 12 | (simd.load_u16(b.sc + 2) >> 8) & 0xF0
        return simd.f16_from_bits(low | (simd.load_u16(b.sc + 4) >> 4) & 0xF00 | simd.load_u16(b.sc + 6) & 0xF000)
