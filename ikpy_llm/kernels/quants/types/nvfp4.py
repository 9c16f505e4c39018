"""NVFP4: 64 weights in 36 bytes, 4.5 bits per weight: 4-bit floats (doubled), an 8-bit float scale per 16."""

from ... import simd
from ..base import quant
from ..shared import FP4_LEVELS


@quant(block=64, sub=16, bits=4, zero=12, levels=FP4_LEVELS, scales="ue4m3", sc="u8[4]", qs="u8[32]")
class NVFP4:
    def codes(b, j):
        q = simd.load(simd.U8X8, b.qs + 8 * j)
        return simd.join(q & 15, q >> 4)

    def scale(b, j):
        return simd.load_u8(b.sc + j)
