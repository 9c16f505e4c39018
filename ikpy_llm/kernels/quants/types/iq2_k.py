"""IQ2_K: 256 weights in 76 bytes, 2.375 bits per weight: 4 levels, which some sub-blocks of 16 shift by 5; 4-bit
scales."""

from ..base import quant
from ..shared import IQ2K_LEVELS, bit, nibble, two_bits


@quant(
    block=256, sub=16, bits=2, zero=31, levels=IQ2K_LEVELS, shift=5, scales="mid4",
    d="f16", extra="u16", sc="u8[8]", qs="u8[64]",
)  # fmt: skip
class IQ2_K:
    def codes(b, j):
        return two_bits(b.qs, j)

    def scale(b, j):
        return nibble(b.sc, j)

    def shifted(b, j):
        return bit(b.extra, j)
