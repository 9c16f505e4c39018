"""IQ3_K: 256 weights in 110 bytes, 3.4375 bits per weight: 8 levels, which some sub-blocks of 16 shift by 4; odd
scales up to 31 with a sign."""

from ... import simd
from ..base import quant
from ..shared import IQ3K_LEVELS, bit, nibble, two_bits


@quant(
    block=256, wider=True, sub=16, bits=3, zero=63, levels=IQ3K_LEVELS, shift=4, scales="i7",
    d="f16", extra="u16", scales_h="u16", scales_l="u8[8]", qs="u8[64]", qh="u8[32]",
)  # fmt: skip
class IQ3_K:
    def codes(b, j):
        high = simd.field(simd.load(simd.U8X16, b.qh + 16 * (j & 1)), j >> 1, 1)
        return two_bits(b.qs, j) | high << 2

    def scale(b, j):
        odd = 2 * nibble(b.scales_l, j) + 1
        return -odd if bit(b.scales_h, j) else odd

    def shifted(b, j):
        return bit(b.extra, j)
