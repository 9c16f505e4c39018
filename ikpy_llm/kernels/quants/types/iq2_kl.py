"""IQ2_KL: 256 weights in 86 bytes, 2.6875 bits per weight, and a scale per row: 5-bit codes for pairs of the levels of
IQ3_K; signed 6-bit scales."""

from ... import simd
from ..base import quant
from ..grids import IQ2_KL_EVEN, IQ2_KL_ODD
from ..shared import IQ3K_LEVELS, far_nibble


@quant(
    block=256, wider=True, row="f16", bits=3, zero=63, levels=IQ3K_LEVELS, scales="i8",
    scales_h="u16", scales_l="u8[4]", qs="u8[64]", qh="u8[16]",
)  # fmt: skip
class IQ2_KL:
    def codes(b, j):
        low = simd.field(simd.load(simd.U8X16, b.qs + 16 * (j >> 1)), 4 * (j & 1), 4)
        pairs = low | simd.field(simd.load(simd.U8X16, b.qh), j, 1) << 4
        even = simd.lookup(simd.load(simd.U8X32, IQ2_KL_EVEN()), pairs)
        odd = simd.lookup(simd.load(simd.U8X32, IQ2_KL_ODD()), pairs)
        return simd.join(simd.interleave_low(even, odd), simd.interleave_high(even, odd))

    def scale(b, j):
        return (far_nibble(b.scales_l, j) | ((b.scales_h >> 2 * j) & 3) << 4) - 32
