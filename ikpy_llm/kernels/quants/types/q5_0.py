"""Q5_0: 32 weights in 22 bytes, 5.5 bits per weight: d * (q - 16), the fifth bits in qh."""

from ... import simd
from ..base import quant
from ..shared import nibbles32


@quant(block=32, bits=5, zero=16, d="f16", qh="u32", qs="u8[16]")
class Q5_0:
    def codes(b, j):
        return nibbles32(b.qs) | simd.bits32(b.qh) << 4

    def scale(b, j):
        return b.d
