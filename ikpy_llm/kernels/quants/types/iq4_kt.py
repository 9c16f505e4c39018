"""IQ4_KT: 256 weights in 128 bytes, 4 bits per weight, and a scale per row: 4 columns from a state of 15 bits.
Panels hold the values: 8 bits."""

from ... import simd
from ..base import quant
from ..shared import trellis8


def two_seeds(b, j, i):
    """Starts of the i-th and i+1-th four columns of sub-block j, four times each."""
    w = simd.load_u32(b.sh + 4 * j)
    g, shift = 8 * j + i, 4 * (j >> 2)
    x = simd.load_u8(b.ql + g) | ((simd.load_u8(b.qh + (g & 31)) >> shift) & 15) << 8 | ((w >> (8 + 3 * i)) & 7) << 12
    y = (
        simd.load_u8(b.ql + g + 1)
        | ((simd.load_u8(b.qh + (g & 31) + 1) >> shift) & 15) << 8
        | ((w >> (11 + 3 * i)) & 7) << 12
    )
    first = 4096 + 32768 * (w & 1)
    return simd.join(simd.splat(simd.U32X4, x + first), simd.splat(simd.U32X4, y + first))


@quant(block=256, wider=True, row="f32", bits=8, zero=126, scales="i8", sh="u32[8]", ql="u8[64]", qh="u8[32]")
class IQ4_KT:
    def codes(b, j):
        low = simd.join(trellis8(two_seeds(b, j, 0), 4), trellis8(two_seeds(b, j, 2), 4))
        return simd.join(low, simd.join(trellis8(two_seeds(b, j, 4), 4), trellis8(two_seeds(b, j, 6), 4)))

    def scale(b, j):
        return (simd.load_u8(b.sh + 4 * j) >> 1) - 64
