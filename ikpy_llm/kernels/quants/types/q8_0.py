"""Q8_0: 32 weights in 34 bytes, 8.5 bits per weight: d * q with signed q."""

from ... import simd
from ..base import quant


@quant(block=32, bits=8, zero=128, d="f16", qs="i8[32]")
class Q8_0:
    def codes(b, j):
        return simd.load(simd.U8X32, b.qs) ^ 128

    def scale(b, j):
        return b.d
