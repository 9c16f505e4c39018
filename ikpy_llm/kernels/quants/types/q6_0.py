"""Q6_0: 32 weights in 26 bytes, 6.5 bits per weight: d * (q - 32)."""

from ... import simd
from ..base import quant
from ..shared import nibbles32


@quant(block=32, bits=6, zero=32, d="f16", qh="u8[8]", qs="u8[16]")
class Q6_0:
    def codes(b, j):
        h = simd.load(simd.U8X8, b.qh)  # columns i, i + 8, i + 16, i + 24 in bits 0, 4, 2, 6
        low = simd.join(h & 3, (h >> 4) & 3)
        high = simd.join((h >> 2) & 3, h >> 6)
        return nibbles32(b.qs) | simd.join(low, high) << 4

    def scale(b, j):
        return b.d
