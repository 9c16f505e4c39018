"""IQ4_KS: 256 weights in 136 bytes, 4.25 bits per weight, and a scale per row: levels of IQ4_K, odd 7-bit scales."""

from ... import simd
from ..base import quant
from ..shared import IQ4_LEVELS, nibbles32


@quant(block=256, row="f32", bits=4, zero=128, levels=IQ4_LEVELS, shift=4, scales="odd7", sc="u8[8]", qs="u8[128]")
class IQ4_KS:
    def codes(b, j):
        return nibbles32(b.qs + 16 * j)

    def scale(b, j):
        return simd.load_u8(b.sc + j) >> 1

    def shifted(b, j):
        return simd.load_u8(b.sc + j) & 1
