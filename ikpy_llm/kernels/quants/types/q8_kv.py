"""Q8_KV: 8 bits per weight, and a scale per row (with the sum of the row's codes, which nobody here needs)."""

from ... import simd
from ..base import quant


@quant(block=32, row="f32", bits=8, zero=128, scales="one", qs="i8[32]")
class Q8_KV:
    def codes(b, j):
        return simd.load(simd.U8X32, b.qs) ^ 128
