"""IQ1_KT: 256 weights in 56 bytes, 1.75 bits per weight, and a scale per row: 8 columns from a state of 13 bits.
Panels hold the values: 8 bits."""

from ... import simd
from ..base import quant
from ..grids import IQ4_SIGNED
from ..shared import trellis32


def seed(b, j, i):
    """Start of the i-th eight columns of sub-block j."""
    g = 4 * j + i
    low = simd.load_u8(b.ql + g) | ((simd.load_u8(b.qh + (g & 15)) >> 4 * (g >> 4)) & 15) << 8
    return (low | ((simd.load_u8(b.sh + j) >> (4 + i)) & 1) << 12) + 4096


@quant(block=256, wider=True, row="f32", bits=8, zero=126, scales="i8", sh="u8[8]", ql="u8[32]", qh="u8[16]")
class IQ1_KT:
    def codes(b, j):
        return trellis32(seed(b, j, 0), seed(b, j, 1), seed(b, j, 2), seed(b, j, 3))

    def scale(b, j):
        return simd.load_i8(IQ4_SIGNED() + (simd.load_u8(b.sh + j) & 15))
