"""TQ2_0: 256 ternary weights in 66 bytes, 2.0625 bits per weight: d * (q - 1)."""

from ... import simd
from ..base import quant


@quant(block=256, group=256, bits=2, zero=1, qs="u8[64]", d="f16")
class TQ2_0:
    def codes(b, j):
        return simd.field(simd.load(simd.U8X32, b.qs + 32 * (j >> 2)), 2 * (j & 3), 2)

    def scale(b, j):
        return b.d
