"""Q4_K: 256 weights in 144 bytes, 4.5 bits per weight: eight sub-blocks of 32 with 6-bit scales and minimums."""

from ... import simd
from ..base import quant
from ..shared import k4_min, k4_scale


@quant(block=256, bits=4, scales="u8", mins="u8", d="f16", dmin="f16", sc="u8[12]", qs="u8[128]")
class Q4_K:
    def codes(b, j):
        return simd.field(simd.load(simd.U8X32, b.qs + 32 * (j >> 1)), 4 * (j & 1), 4)

    def scale(b, j):
        return k4_scale(b.sc, j)

    def floor(b, j):
        return k4_min(b.sc, j)
