"""Bit layouts that several types share."""

from .. import simd

IQ4_LEVELS = (1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241)  # level + 128
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
