"""IQ1_S: 256 weights in 50 bytes, 1.5625 bits per weight: rows of a grid of 2048 x 8 ternary values, plus or minus 1/8.

In eighths: (2s+1) * (8 * grid + sign), which is a scale of 8 * (2s+1) and a minimum of -sign * (2s+1).
"""

from ... import simd
from ..base import quant
from ..grids import IQ1_GRID
from ..shared import grid16


@quant(block=256, wider=True, bits=2, zero=1, scales="u8", mins="i8", unit=1 / 8, d="f16", qs="u8[32]", qh="u16[8]")
class IQ1_S:
    def codes(b, j):
        p, h, grid = b.qs + 4 * j, simd.load_u16(b.qh + 2 * j), IQ1_GRID()
        w, x = simd.load_u8(p) | (h & 7) << 8, simd.load_u8(p + 1) | ((h >> 3) & 7) << 8
        y, z = simd.load_u8(p + 2) | ((h >> 6) & 7) << 8, simd.load_u8(p + 3) | ((h >> 9) & 7) << 8
        return simd.join(grid16(grid, w, x), grid16(grid, y, z))

    def scale(b, j):
        return 8 * (2 * ((simd.load_u16(b.qh + 2 * j) >> 12) & 7) + 1)

    def floor(b, j):
        h = simd.load_u16(b.qh + 2 * j)
        odd = 2 * ((h >> 12) & 7) + 1
        return odd if h >> 15 else -odd

    def dmin(b):
        return b.d
