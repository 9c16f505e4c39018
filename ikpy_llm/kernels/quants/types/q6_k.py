"""Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight: sixteen sub-blocks of 16 with signed 8-bit scales."""

from ... import simd
from ..base import quant


@quant(block=256, sub=16, bits=6, zero=32, scales="i8", ql="u8[128]", qh="u8[64]", sc="i8[16]", d="f16")
class Q6_K:
    def codes(b, j):
        half, quarter, piece = j >> 3, (j >> 1) & 3, 16 * (j & 1)  # 128 columns, 32 of those, 16 of those
        low = simd.field(simd.load(simd.U8X16, b.ql + 64 * half + 32 * (quarter & 1) + piece), 4 * (quarter >> 1), 4)
        return low | simd.field(simd.load(simd.U8X16, b.qh + 32 * half + piece), 2 * quarter, 2) << 4

    def scale(b, j):
        return simd.load_i8(b.sc + j)
