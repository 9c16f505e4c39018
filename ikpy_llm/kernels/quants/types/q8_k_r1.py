"""Rows of Q8_K_R8 and Q8_K_R16: 256 weights in 258 bytes, d * q with signed q."""

from ... import simd
from ..base import quant


@quant(block=256, group=256, bits=8, zero=128, d="f16", qs="i8[256]")
class Q8_K_R1:
    def codes(b, j):
        return simd.load(simd.U8X32, b.qs + 32 * j) ^ 128

    def scale(b, j):
        return b.d
