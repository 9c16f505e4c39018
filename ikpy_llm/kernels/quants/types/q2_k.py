"""Q2_K: 256 weights in 84 bytes, 2.625 bits per weight: sixteen sub-blocks of 16 with 4-bit scales and minimums."""

from ... import simd
from ..base import quant
from ..shared import two_bits


@quant(
    block=256, sub=16, bits=2, scales="u4", mins="u4",
    sc="u8[16]", qs="u8[64]", d="f16", dmin="f16",
)  # fmt: skip
class Q2_K:
    def codes(b, j):
        return two_bits(b.qs, j)

    def scale(b, j):
        return simd.load_u8(b.sc + j) & 15

    def floor(b, j):
        return simd.load_u8(b.sc + j) >> 4
