"""Q1_0_G128 (Q1_0 in mainline): 128 weights in 18 bytes, 1.125 bits per weight: +d or -d."""

from ... import simd
from ..base import quant


@quant(block=128, group=128, bits=1, zero=1, levels=(0, 2), d="f16", qs="u8[16]")
class Q1_0_G128:
    def codes(b, j):
        return simd.bits32(simd.load_u32(b.qs + 4 * j))

    def scale(b, j):
        return b.d
