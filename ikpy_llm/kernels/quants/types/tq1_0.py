"""TQ1_0: 256 ternary weights in 54 bytes, 1.6875 bits per weight: five base-3 digits to a byte, d * (digit - 1)."""

from ... import simd
from ..base import quant
from ..shared import digit


@quant(block=256, wider=True, group=256, bits=2, zero=1, qs="u8[48]", qh="u8[4]", d="f16")
class TQ1_0:
    def codes(b, j):
        power = 1 if j == 0 else 3 if j == 1 else 9 if j == 2 else 27 if j == 3 else 81
        if j < 5:
            return simd.join(digit(simd.load(simd.U8X16, b.qs), power), digit(simd.load(simd.U8X16, b.qs + 16), power))
        v = simd.load(simd.U8X16, b.qs + 32)
        if j < 7:
            return simd.join(digit(v, 1 if j == 5 else 9), digit(v, 3 if j == 5 else 27))
        last = simd.splat4(simd.U8X16, b.qh)
        powers = simd.bytes16(0x0303030301010101, 0x1B1B1B1B09090909)
        return simd.join(digit(v, 81), simd.cast(simd.U8X16, simd.cast(simd.U16X16, last * powers) * 3 >> 8))

    def scale(b, j):
        return b.d
