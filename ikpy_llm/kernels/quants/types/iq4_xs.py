"""IQ4_XS: 256 weights in 136 bytes, 4.25 bits per weight: the levels of IQ4_NL, eight sub-blocks with 6-bit scales."""

from ..base import quant
from ..shared import IQ4_LEVELS, nibble, nibbles32


@quant(
    block=256, bits=4, zero=128, levels=IQ4_LEVELS, scales="i8",
    d="f16", scales_h="u16", scales_l="u8[4]", qs="u8[128]",
)  # fmt: skip
class IQ4_XS:
    def codes(b, j):
        return nibbles32(b.qs + 16 * j)

    def scale(b, j):
        return (nibble(b.scales_l, j) | ((b.scales_h >> 2 * j) & 3) << 4) - 32
