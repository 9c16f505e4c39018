"""IQ4_KSS: 256 weights in 128 bytes, 4 bits per weight, and a scale per row: IQ4_KS whose scale bytes lie in the lowest
bits of 16-bit words of codes, which are left with an even number of ones."""

from ... import simd
from ..base import quant
from ..shared import IQ4_LEVELS


def lowest_bits(p):
    """The lowest bits of eight 16-bit words at p, as a byte."""
    ones, gather = 0x0001000100010001, 0x0001000200040008  # the product has bits 0, 16, 32, 48 side by side at 48
    low, high = ((simd.load_i64(p) & ones) * gather) >> 48, ((simd.load_i64(p + 8) & ones) * gather) >> 48
    return (low & 15) | (high & 15) << 4


@quant(block=256, wider=True, row="f32", bits=4, zero=128, levels=IQ4_LEVELS, shift=4, scales="odd7", qs="u16[64]")
class IQ4_KSS:
    def codes(b, j):
        v = simd.load(simd.U16X8, b.qs + 16 * j) & 0xFFFE
        q = simd.bits(simd.U8X16, v ^ (v >> 1))
        return simd.join(q & 15, q >> 4)

    def scale(b, j):
        return lowest_bits(b.qs + 16 * j) >> 1

    def shifted(b, j):
        return lowest_bits(b.qs + 16 * j) & 1
