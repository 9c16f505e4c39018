"""Q4_1: 32 weights in 20 bytes, 5 bits per weight: d * q + m."""

from ..base import quant
from ..shared import nibbles32


@quant(block=32, bits=4, mins="f16", d="f16", m="f16", qs="u8[16]")
class Q4_1:
    def codes(b, j):
        return nibbles32(b.qs)

    def scale(b, j):
        return b.d

    def floor(b, j):
        return -b.m
