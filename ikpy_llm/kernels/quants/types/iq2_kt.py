"""IQ2_KT: 256 weights in 68 bytes, 2.125 bits per weight, and a scale per row: 8 columns from a state of 16 bits.
Panels hold the values: 8 bits."""

from ... import simd
from ..base import quant
from ..grids import IQ4_SIGNED
from ..shared import far_nibble, trellis_words


@quant(block=256, wider=True, row="f32", gain=1.05, bits=8, zero=126, scales="i8", sc="u8[4]", ql="u16[32]")
class IQ2_KT:
    def codes(b, j):
        return trellis_words(b.ql + 8 * j)

    def scale(b, j):
        return simd.load_i8(IQ4_SIGNED() + far_nibble(b.sc, j))
