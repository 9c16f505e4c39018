"""IQ3_KT: 256 weights in 100 bytes, 3.125 bits per weight, and a scale per row: sizes of 8 columns from a state of 16
bits, and sign bits. Panels hold the values: 8 bits."""

from ... import simd
from ..base import quant
from ..shared import far_nibble, trellis_words


@quant(
    block=256, wider=True, row="f32", gain=1.01, bits=8, zero=126, scales="u4",
    sc="u8[4]", ql="u16[32]", qh="u8[32]",
)  # fmt: skip
class IQ3_KT:
    def codes(b, j):
        v = trellis_words(b.ql + 8 * j)
        above = simd.maximum(v, 252 - v)
        return simd.select(simd.field(simd.load(simd.U8X32, b.qh), j, 1) > 0, 252 - above, above)

    def scale(b, j):
        return far_nibble(b.sc, j)
