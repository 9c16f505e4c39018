"""IQ5_KS: 256 weights in 168 bytes, 5.25 bits per weight, and a scale per row: levels of IQ5_K, odd 7-bit scales."""

from ... import simd
from ..base import quant
from ..shared import IQ5K_LEVELS


@quant(
    block=256, row="f32", bits=5, zero=128, levels=IQ5K_LEVELS, shift=2, scales="odd7",
    sc="u8[8]", qs="u8[128]", qh="u8[32]",
)  # fmt: skip
class IQ5_KS:
    def codes(b, j):
        low = simd.field(simd.load(simd.U8X32, b.qs + 32 * (j >> 1)), 4 * (j & 1), 4)
        return low | simd.field(simd.load(simd.U8X32, b.qh), j, 1) << 4

    def scale(b, j):
        return simd.load_u8(b.sc + j) >> 1

    def shifted(b, j):
        return simd.load_u8(b.sc + j) & 1
