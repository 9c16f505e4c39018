"""Q5_K: 256 weights in 176 bytes, 5.5 bits per weight: Q4_K with a fifth bit in qh."""

from ... import simd
from ..base import quant
from ..shared import k4_min, k4_scale


@quant(block=256, bits=5, scales="u8", mins="u8", d="f16", dmin="f16", sc="u8[12]", qh="u8[32]", qs="u8[128]")
class Q5_K:
    def codes(b, j):
        low = simd.field(simd.load(simd.U8X32, b.qs + 32 * (j >> 1)), 4 * (j & 1), 4)
        return low | simd.field(simd.load(simd.U8X32, b.qh), j, 1) << 4

    def scale(b, j):
        return k4_scale(b.sc, j)

    def floor(b, j):
        return k4_min(b.sc, j)
