"""IQ5_K: 256 weights in 176 bytes, 5.5 bits per weight: 32 levels, which some sub-blocks of 16 shift by 2; signed 6-bit
scales."""

from ... import simd
from ..base import quant
from ..shared import IQ5K_LEVELS, bit, quarter_nibbles, scale6


@quant(
    block=256, sub=16, bits=5, zero=128, levels=IQ5K_LEVELS, shift=2, scales="i7",
    d="f16", extra="u16", scales_h="u8[4]", scales_l="u8[8]", qs="u8[128]", qh="u8[32]",
)  # fmt: skip
class IQ5_K:
    def codes(b, j):
        high = simd.field(simd.load(simd.U8X16, b.qh + 16 * (j & 1)), j >> 1, 1)
        return quarter_nibbles(b.qs, j) | high << 4

    def scale(b, j):
        return scale6(b.scales_l, b.scales_h, j)

    def shifted(b, j):
        return bit(b.extra, j)
