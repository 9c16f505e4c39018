"""Q4_0: 32 weights in 18 bytes, 4.5 bits per weight: d * (q - 8)."""

from ..base import quant
from ..shared import nibbles32


@quant(block=32, bits=4, zero=8, d="f16", qs="u8[16]")
class Q4_0:
    def codes(b, j):
        return nibbles32(b.qs)

    def scale(b, j):
        return b.d
