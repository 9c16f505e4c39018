"""IQ2_KS: 256 weights in 70 bytes, 2.1875 bits per weight, and a scale per row: the levels of IQ2_K, 5-bit scales."""

from ... import simd
from ..base import quant
from ..shared import IQ2K_LEVELS, bit, nibble


@quant(
    block=256, row="f16", bits=2, zero=31, levels=IQ2K_LEVELS, shift=5, scales="i7",
    extra="u16", sc="u8[4]", qs="u8[64]",
)  # fmt: skip
class IQ2_KS:
    def codes(b, j):
        return simd.field(simd.load(simd.U8X32, b.qs + 32 * (j >> 2)), 2 * (j & 3), 2)

    def scale(b, j):
        return (nibble(b.sc, j) | bit(b.extra, 8 + j) << 4) - 16

    def shifted(b, j):
        return bit(b.extra, j)
