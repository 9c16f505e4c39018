"""IQ4_NL: 32 weights in 18 bytes, 4.5 bits per weight: d times a table of 16 levels."""

from ..base import quant
from ..shared import IQ4_LEVELS, nibbles32


@quant(block=32, bits=4, zero=128, levels=IQ4_LEVELS, d="f16", qs="u8[16]")
class IQ4_NL:
    def codes(b, j):
        return nibbles32(b.qs)

    def scale(b, j):
        return b.d
