"""Q3_K: 256 weights in 110 bytes, 3.4375 bits per weight: sixteen sub-blocks of 16 with signed 6-bit scales."""

from ... import simd
from ..base import quant
from ..shared import two_bits


@quant(
    block=256, wider=True, sub=16, bits=3, zero=4, scales="i8",
    hmask="u8[32]", qs="u8[64]", sc="u8[12]", d="f16",
)  # fmt: skip
class Q3_K:
    def codes(b, j):
        high = simd.field(simd.load(simd.U8X16, b.hmask + 16 * (j & 1)), j >> 1, 1)
        return two_bits(b.qs, j) | high << 2

    def scale(b, j):
        low = (simd.load_u8(b.sc + (j & 7)) >> 4 * (j >> 3)) & 15
        return (low | ((simd.load_u8(b.sc + 8 + (j & 3)) >> 2 * (j >> 2)) & 3) << 4) - 32
