"""IQ3_KS: 256 weights in 102 bytes, 3.1875 bits per weight, and a scale per row: the levels of IQ3_K, 5-bit scales."""

from ... import simd
from ..base import quant
from ..shared import IQ3K_LEVELS, bit, far_nibble


@quant(
    block=256, row="f16", bits=3, zero=63, levels=IQ3K_LEVELS, shift=4, scales="i7",
    extra="u16", sc="u8[4]", qs="u8[64]", qh="u8[32]",
)  # fmt: skip
class IQ3_KS:
    def codes(b, j):
        low = simd.field(simd.load(simd.U8X32, b.qs + 32 * (j >> 2)), 2 * (j & 3), 2)
        return low | simd.field(simd.load(simd.U8X32, b.qh), j, 1) << 2

    def scale(b, j):
        return (far_nibble(b.sc, j) | bit(b.extra, j) << 4) - 16

    def shifted(b, j):
        return bit(b.extra, 8 + j)
