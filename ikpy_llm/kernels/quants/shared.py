"""Bit layouts that several types share."""

from .. import simd
from .grids import TRELLIS_POWERS

IQ4_LEVELS = (1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241)  # level + 128
EIGHTHS = (2, 10, 18, 9, 0, 8, 16, 9)  # 8 * (value of the grid of IQ1_S) + 1 or, from the fifth on, - 1; zero 9
FP4_LEVELS = (12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)  # twice the 4-bit float, + 12


def nibbles32(p):
    """32 codes from 16 bytes: the low nibbles, then the high nibbles."""
    q = simd.load(simd.U8X16, p)
    return simd.join(q & 15, q >> 4)


def k4_scale(p, j):
    """6-bit scale j of the 12 bytes Q4_K and Q5_K share."""
    if j < 4:
        return simd.load_u8(p + j) & 63
    return (simd.load_u8(p + j + 4) & 15) | ((simd.load_u8(p + j - 4) >> 6) << 4)


def k4_min(p, j):
    """6-bit minimum j of the same 12 bytes."""
    if j < 4:
        return simd.load_u8(p + j + 4) & 63
    return (simd.load_u8(p + j + 4) >> 4) | ((simd.load_u8(p + j) >> 6) << 4)


def two_bits(p, j):
    """16 codes of sub-block j of 16, two bits each, packed as in Q2_K: 4 x 32 columns share 32 bytes."""
    quarter = 2 * ((j >> 1) & 3)
    return simd.field(simd.load(simd.U8X16, p + 32 * (j >> 3) + 16 * (j & 1)), quarter, 2)


def nibble(p, i):
    """4-bit number i of an array, low nibble first."""
    return (simd.load_u8(p + (i >> 1)) >> 4 * (i & 1)) & 15


def grid16(grid, i, k):
    """Rows i and k of a grid with 8 columns."""
    return simd.bytes16(simd.load_i64(grid + 8 * i), simd.load_i64(grid + 8 * k))


def grid8(grid, i, k):
    """Rows i and k of a grid with 4 columns, as int64."""
    return simd.load_u32(grid + 4 * i) | simd.load_u32(grid + 4 * k) << 32


def bits16(mask):
    """16 bits as 16 bytes of 0 or 1."""
    return simd.low(simd.bits32(mask))


def four_signs(table, a):
    """32 sign bits from four 7-bit sign codes."""
    low = simd.load_u8(table + (a & 127)) | simd.load_u8(table + ((a >> 7) & 127)) << 8
    return low | simd.load_u8(table + ((a >> 14) & 127)) << 16 | simd.load_u8(table + ((a >> 21) & 127)) << 24


# ---------------------------------------------------------------- ik_llama.cpp's tables: level + zero
IQ2K_LEVELS = (0, 18, 32, 48)  # zero 31; the second table has 5 more
IQ3K_LEVELS = (0, 23, 40, 53, 64, 76, 91, 110)  # zero 63, 4 more
IQ5K_LEVELS = (
    2, 14, 25, 36, 45, 54, 63, 71, 78, 85, 92, 98, 104, 110, 116, 122,
    127, 133, 139, 145, 151, 157, 164, 171, 179, 187, 196, 205, 215, 225, 237, 249,
)  # zero 128, 2 more  # fmt: skip
IQ6K_LEVELS = (
    1, 7, 13, 19, 24, 30, 35, 40, 44, 49, 54, 58, 62, 66, 70, 74,
    77, 81, 84, 88, 91, 94, 97, 100, 103, 106, 109, 112, 115, 117, 120, 123,
    126, 128, 131, 134, 137, 140, 142, 145, 148, 151, 155, 158, 161, 164, 168, 172,
    175, 179, 183, 187, 191, 196, 200, 205, 210, 215, 220, 226, 231, 237, 243, 249,
)  # zero 128, 1 more  # fmt: skip


def scale6(low, high, j):
    """Signed 6-bit scale j: nibbles, low one first, and two bits, lowest first, of two arrays."""
    return (nibble(low, j) | ((simd.load_u8(high + (j >> 2)) >> 2 * (j & 3)) & 3) << 4) - 32


def bit(mask, j):
    return (mask >> j) & 1


def half_nibbles(p, j):
    """16 codes of sub-block j of 16, where 32 columns share 16 bytes: the low nibbles, then the high nibbles."""
    return simd.field(simd.load(simd.U8X16, p + 16 * (j >> 1)), 4 * (j & 1), 4)


def quarter_nibbles(p, j):
    """16 codes of sub-block j of 16, where 64 columns share 32 bytes: the low nibbles, then the high nibbles."""
    return simd.field(simd.load(simd.U8X16, p + 32 * (j >> 2) + 16 * (j & 1)), 4 * ((j >> 1) & 1), 4)


def far_nibble(p, j):
    """4-bit number j of eight in four bytes: the low nibbles first."""
    return (simd.load_u8(p + (j & 3)) >> 4 * (j >> 2)) & 15


def digit(v, power):
    """The digit that multiplying by a power of 3 brings to the top: (3 * (v * power mod 256)) / 256."""
    return simd.cast(simd.U8X16, simd.cast(simd.U16X16, v * power) * 3 >> 8)


# ---------------------------------------------------------------- trellis: value k of a state x is the sum of the bytes
# of x * C^(k + 1) mod 2^32, six bits of each, minus 126
def trellis8(seeds, period):
    """Values + 126 of eight columns, whose states start anew after `period` (4 or 8) columns."""
    powers = simd.load(simd.U32X8, TRELLIS_POWERS() + 32 * (period == 4))
    x = simd.bits(simd.U8X32, (powers * seeds) & 0x3F3F3F3F)
    return simd.cast(simd.U8X8, simd.dot4_small(simd.zeros(simd.I32X8), x, simd.splat(simd.I8X32, 1)))


def trellis32(w, x, y, z):
    """Values + 126 of 32 columns from four states."""
    low = simd.join(trellis8(simd.splat(simd.U32X8, w), 8), trellis8(simd.splat(simd.U32X8, x), 8))
    return simd.join(low, simd.join(trellis8(simd.splat(simd.U32X8, y), 8), trellis8(simd.splat(simd.U32X8, z), 8)))


def trellis_words(p):
    """The same from four 16-bit words at p."""
    a = simd.load_i64(p)
    return trellis32(
        (a & 0xFFFF) + 4096, ((a >> 16) & 0xFFFF) + 4096, ((a >> 32) & 0xFFFF) + 4096, ((a >> 48) & 0xFFFF) + 4096
    )
