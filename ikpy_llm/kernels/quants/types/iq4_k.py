"""IQ4_K: 256 weights in 144 bytes, 4.5 bits per weight: the levels of IQ4_NL, which some sub-blocks of 16 shift by 4;
signed 6-bit scales."""

from ..base import quant
from ..shared import IQ4_LEVELS, bit, half_nibbles, scale6


@quant(
    block=256, sub=16, bits=4, zero=128, levels=IQ4_LEVELS, shift=4, scales="i7",
    d="f16", extra="u16", scales_h="u8[4]", scales_l="u8[8]", qs="u8[128]",
)  # fmt: skip
class IQ4_K:
    def codes(b, j):
        return half_nibbles(b.qs, j)

    def scale(b, j):
        return scale6(b.scales_l, b.scales_h, j)

    def shifted(b, j):
        return bit(b.extra, j)
