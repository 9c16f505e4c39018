"""Q5_1: 32 weights in 24 bytes, 6 bits per weight: d * q + m, the fifth bits in qh."""

from ... import simd
from ..base import quant
from ..shared import nibbles32


@quant(block=32, bits=5, mins="f16", d="f16", m="f16", qh="u32", qs="u8[16]")
class Q5_1:
    def codes(b, j):
        return nibbles32(b.qs) | simd.bits32(b.qh) << 4

    def scale(b, j):
        return b.d

    def floor(b, j):
        return -b.m
