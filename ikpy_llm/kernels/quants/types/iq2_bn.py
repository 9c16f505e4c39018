"""IQ2_BN: 64 ternary weights in 16 bytes, 2 bits per weight, and a scale per row: d * (q - 1)."""

from ... import simd
from ..base import quant


@quant(block=64, row="f32", bits=2, zero=1, scales="one", qs="u8[16]")
class IQ2_BN:
    def codes(b, j):
        q = simd.load(simd.U8X16, b.qs)
        return simd.join(simd.field(q, 4 * j, 2), simd.field(q, 4 * j + 2, 2))
