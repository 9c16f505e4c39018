"""MXFP4: 32 weights in 17 bytes, 4.25 bits per weight: 4-bit floats (doubled) times half of a power of two."""

from ..base import quant
from ..shared import FP4_LEVELS, nibbles32


@quant(block=32, bits=4, zero=12, levels=FP4_LEVELS, scales="e8m0", e="u8", qs="u8[16]")
class MXFP4:
    def codes(b, j):
        return nibbles32(b.qs)

    def scale(b, j):
        return b.e
