"""IQ1_BN: 64 ternary weights in 13 bytes, 1.625 bits per weight, and a scale per row: five base-3 digits to a byte."""

from ... import simd
from ..base import quant
from ..grids import IQ1_BN_POWERS, IQ1_BN_SOURCES
from ..shared import digit


@quant(block=64, wider=True, row="f16", bits=2, zero=1, scales="one", ql="u8[12]", extra="u8")
class IQ1_BN:
    def codes(b, j):
        # 16 columns are three bytes of five digits and one digit of `extra`: 13 bytes go to 2 x 16 lanes
        bytes13 = simd.bytes16(simd.load_i64(b.ql), simd.load_u32(b.ql + 8) | b.extra << 32)
        first = simd.lookup(bytes13, simd.load(simd.U8X16, IQ1_BN_SOURCES() + 32 * j))
        second = simd.lookup(bytes13, simd.load(simd.U8X16, IQ1_BN_SOURCES() + 32 * j + 16))
        low = digit(first, simd.load(simd.U8X16, IQ1_BN_POWERS() + 32 * j))
        return simd.join(low, digit(second, simd.load(simd.U8X16, IQ1_BN_POWERS() + 32 * j + 16)))
