"""IQ6_K: 256 weights in 212 bytes, 6.625 bits per weight: 64 levels, which some sub-blocks of 16 shift by 1; signed
8-bit scales.

The levels are those of the reference's products; its row decoder uses the cubic they were rounded from. Panels for AVX2
hold levels, 8 bits.
"""

from ... import simd
from ..base import quant
from ..shared import IQ6K_LEVELS, bit, quarter_nibbles


@quant(
    block=256, wider=True, sub=16, bits=6, zero=128, levels=IQ6K_LEVELS, shift=1, scales="i8",
    d="f16", extra="u16", sc="i8[16]", qs="u8[128]", qh="u8[64]",
)  # fmt: skip
class IQ6_K:
    def codes(b, j):
        high = simd.field(simd.load(simd.U8X16, b.qh + 32 * (j >> 3) + 16 * (j & 1)), 2 * ((j >> 1) & 3), 2)
        return quarter_nibbles(b.qs, j) | high << 4

    def scale(b, j):
        return simd.load_i8(b.sc + j)

    def shifted(b, j):
        return bit(b.extra, j)
