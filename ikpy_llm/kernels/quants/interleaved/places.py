"""Where the bits of rows lie in the interleaved types, which ik_llama.cpp writes to files and reads without unpacking.

k is the row in its group, j the column in a block, b = j / 32, c = j % 32, s a sub-block of 16 (b, h = its half), i the
number of something small of all rows. `at(byte, bit)` counts from the start of a block. Rows first, then woven.
"""

import numpy as np

from .weave import interleaved

J32, J, B, S = np.arange(32), np.arange(256), np.arange(8), np.arange(16)
C, OF, H = J % 32, J // 32, S % 2


def at(byte, bit=0):
    return 8 * byte + bit


# ---------------------------------------------------------------- rows
def low_high(first):
    """Nibbles of blocks of 32: columns 0-15, then 16-31; bigger blocks repeat that."""
    return at(first + 16 * OF + C % 16, 4 * (C // 16))


def nibbles(first):
    """64 columns in 32 bytes: the low nibbles, then the high ones."""
    return at(first + 32 * (J // 64) + C, 4 * (OF % 2))


def twos(first):
    """128 columns in 32 bytes."""
    return at(first + 32 * (J // 128) + C, 2 * (OF % 4))


def fifths(first):
    """Bit b of 32 bytes."""
    return at(first + C, OF)


def nibble(first, i):
    return at(first + i // 2, 4 * (i % 2))


# ---------------------------------------------------------------- woven
def woven4(first, k, j=J):
    """Nibbles of four rows: 64 bytes for 32 columns."""
    c = j % 32
    return at(first + 64 * (j // 32) + 16 * (2 * (c // 4 % 2) + c // 16) + 4 * k + c % 4, 4 * (c // 8 % 2))


def woven2(first, k, j=J):
    """Two bits of four rows: 32 bytes for 32 columns."""
    return at(first + 32 * (j // 32) + 16 * (j % 32 // 16) + 4 * k + j % 4, 2 * (j % 16 // 4))


def woven1(first, k, bit):
    """One bit of four rows: 16 bytes for 32 columns."""
    return at(first + 16 * OF + 4 * k + C % 4, bit)


def halves(first, k):
    """Half floats, one of each row."""
    return at(first + 2 * k)


def of_sixteen(k):
    """Number of sub-block s of 16 of row k."""
    return 8 * (S // 2) + 4 * H + k


def split(first, i, bits):
    """Number i of an array whose bytes hold `bits` of i, i + n, i + 2n ...: n = 32 for nibbles, 16 for pairs."""
    n = 32 if bits == 4 else 16
    return at(first + i % n, bits * (i // n))


# ---------------------------------------------------------------- blocks of 32
def _wide(first, k, j=J32):
    """Nibbles of eight rows."""
    return at(first + 32 * (j % 16 // 4) + 4 * k + j % 4, 4 * (j // 16))


def _bytes(first, k, rows, n):
    """Bytes of `rows` rows: four columns of each in turn."""
    j = np.arange(n)
    return at(first + 4 * rows * (j // 4) + 4 * k + j % 4)


@interleaved("Q4_0")
def Q4_0_R8(k):
    yield 16, at(0), halves(0, k)
    yield 4, at(2 + J32 % 16, 4 * (J32 // 16)), _wide(16, k)


@interleaved("MXFP4")
def MXFP4_R8(k):
    yield 8, at(0), at(k)
    yield 4, at(1 + J32 % 16, 4 * (J32 // 16)), _wide(8, k)


@interleaved("Q8_0")
def Q8_0_R8(k):
    yield 16, at(0), halves(0, k)
    yield 8, at(2 + J32), _bytes(16, k, 8, 32)


@interleaved("IQ4_NL")
def IQ4_NL_R4(k):
    yield 16, at(0), halves(0, k)
    yield 4, at(2 + J32 % 16, 4 * (J32 // 16)), woven4(8, k, J32)


@interleaved("Q5_0")
def Q5_0_R4(k):
    yield 16, at(0), halves(0, k)
    yield 1, at(2, J32), at(8 + 4 * k + J32 % 4, 2 * (J32 // 4 % 2) + J32 // 16 + 4 * (J32 // 8 % 2))
    yield 4, at(6 + J32 % 16, 4 * (J32 // 16)), woven4(24, k, J32)


@interleaved("Q6_0")
def Q6_0_R4(k):
    yield 16, at(0), halves(0, k)
    high = at(8 + 16 * (J32 // 16) + 4 * k + J32 % 4, 2 * (J32 // 4 % 2) + 4 * (J32 // 8 % 2))
    yield 2, at(2 + J32 % 8, 4 * (J32 % 16 // 8) + 2 * (J32 // 16)), high
    yield 4, at(10 + J32 % 16, 4 * (J32 // 16)), woven4(40, k, J32)


# ---------------------------------------------------------------- k-quants
@interleaved("Q2_K")
def Q2_K_R4(k):
    yield 16, at(80), halves(0, k)
    yield 16, at(82), halves(8, k)
    yield 8, at(S), at(16 + of_sixteen(k))
    yield 2, twos(16), woven2(80, k)


@interleaved("Q3_K")
def Q3_K_R4(k):
    i = of_sixteen(k)
    yield 16, at(108), halves(0, k)
    yield 4, at(96 + S % 8, 4 * (S // 8)), split(24, i, 4)
    yield 2, at(104 + S % 4, 2 * (S // 4)), split(8, i, 2)
    yield 1, fifths(0), woven1(56, k, C // 4)
    yield 2, twos(32), woven2(184, k)


def _k4(k):
    """d, dmin, and the 6-bit scales and minimums of Q4_K and Q5_K."""
    yield 16, at(0), halves(0, k)
    yield 16, at(2), halves(8, k)
    i, late = 4 * B + k, B >= 4
    low, high = at(32 + i), at(16 + i % 16, 4 * (i // 16))
    yield 4, np.where(late, at(8 + B), at(4 + B)), low
    yield 2, np.where(late, at(B, 6), at(4 + B, 4)), high
    yield 4, np.where(late, at(8 + B, 4), at(8 + B)), low + 4
    yield 2, np.where(late, at(4 + B, 6), at(8 + B, 4)), high + 2


@interleaved("Q4_K")
def Q4_K_R4(k):
    yield from _k4(k)
    yield 4, nibbles(16), woven4(64, k)


@interleaved("Q5_K")
def Q5_K_R4(k):
    yield from _k4(k)
    yield 1, fifths(16), woven1(64, k, 4 * (C // 16) + 2 * (C // 4 % 2) + C // 8 % 2)
    yield 4, nibbles(48), woven4(192, k)


@interleaved("Q6_K")
def Q6_K_R4(k):
    half, quarter = J // 128, J % 128 // 32
    yield 16, at(208), halves(0, k)
    yield 8, at(192 + S), at(8 + of_sixteen(k))
    high = at(72 + 32 * OF + 16 * (C // 16) + 4 * k + C % 4, 4 * (C // 4 % 2) + 2 * (C // 8 % 2))
    yield 2, at(128 + 32 * half + C, 2 * quarter), high
    yield 4, at(64 * half + 32 * (quarter % 2) + C, 4 * (quarter // 2)), woven4(328, k)


# ---------------------------------------------------------------- levels
@interleaved("IQ4_XS")
def IQ4_XS_R8(k):
    i = 8 * B + k
    yield 16, at(0), halves(0, k)
    yield 2, at(2, 2 * B), split(16, i, 2)
    yield 4, nibble(4, B), split(32, i, 4)
    yield 4, low_high(8), at(64 + 128 * OF + 32 * (C // 8) + 4 * k + C % 4, 4 * (C // 4 % 2))


def _shifts(k):
    """d and the shift bits."""
    yield 16, at(0), halves(0, k)
    yield 1, at(2, S), at(8 + 4 * H + k, S // 2)


@interleaved("IQ2_K")
def IQ2_K_R4(k):
    yield from _shifts(k)
    yield 4, nibble(4, S), split(16, of_sixteen(k), 4)
    yield 2, twos(12), woven2(48, k)


@interleaved("IQ3_K")
def IQ3_K_R4(k):
    i = of_sixteen(k)
    yield from _shifts(k)
    yield 1, at(4, S), at(16 + i % 8, i // 8)
    yield 4, nibble(6, S), split(24, i, 4)
    yield 2, twos(14), woven2(56, k)
    yield 1, fifths(78), woven1(312, k, C // 4)


def _six(k):
    """6-bit scales of IQ4_K and IQ5_K."""
    yield 2, at(4 + S // 4, 2 * (S % 4)), split(16, of_sixteen(k), 2)
    yield 4, nibble(8, S), split(32, of_sixteen(k), 4)


FIFTH = 4 * (C // 4 % 2) + 2 * (C // 16) + C // 8 % 2  # place of the fifth bit in IQ5_K_R4 and IQ5_KS_R4


@interleaved("IQ4_K")
def IQ4_K_R4(k):
    yield from _shifts(k)
    yield from _six(k)
    yield 4, low_high(16), woven4(64, k)


@interleaved("IQ5_K")
def IQ5_K_R4(k):
    yield from _shifts(k)
    yield from _six(k)
    yield 4, nibbles(16), woven4(64, k)
    yield 1, fifths(144), woven1(576, k, FIFTH)


@interleaved("IQ4_KS")
def IQ4_KS_R4(k):
    yield 8, at(B), at(4 * B + k)
    yield 4, low_high(8), woven4(32, k)


@interleaved("IQ5_KS")
def IQ5_KS_R4(k):
    yield 8, at(B), at(4 * B + k)
    yield 4, nibbles(8), woven4(32, k)
    yield 1, fifths(136), woven1(544, k, FIFTH)


# ---------------------------------------------------------------- grids: L numbers the 32 groups of 8 columns
L, G = np.arange(32), np.arange(64)
OF_L = 16 * (L // 4) + L % 4  # + 4 k


@interleaved("IQ2_XXS")
def IQ2_XXS_R4(k):
    yield 16, at(0), halves(0, k)
    yield 1, at(2 + 8 * (L // 4), 60 + L % 4), at(8 + OF_L + 4 * k)
    yield 7, at(2 + 8 * (L // 4), 32 + 7 * (L % 4)), at(8 + OF_L + 4 * k, 1), "prefix"
    yield 8, at(2 + 8 * (L // 4) + L % 4), at(136 + OF_L + 4 * k)


@interleaved("IQ2_XS")
def IQ2_XS_R4(k):
    yield 16, at(0), halves(0, k)
    yield 9, at(2 + 2 * L), at(8 + 2 * (OF_L + 4 * k))
    yield 7, at(2 + 2 * L, 9), at(8 + 2 * (OF_L + 4 * k), 9), "prefix"
    yield 8, at(66 + B), at(264 + 4 * B + k)


@interleaved("IQ2_S")
def IQ2_S_R4(k):
    yield 16, at(0), halves(0, k)
    yield 8, at(2 + L), at(8 + OF_L + 4 * k)
    yield 8, at(66 + B), at(136 + 4 * B + k)
    yield 8, at(34 + L), at(168 + OF_L + 4 * k)
    yield 8, at(74 + B), at(296 + 4 * B + k)


@interleaved("IQ3_XXS")
def IQ3_XXS_R4(k):
    yield 16, at(0), halves(0, k)
    yield 1, at(66 + 4 * (L // 4), 28 + L % 4), at(8 + OF_L + 4 * k)
    yield 7, at(66 + 4 * (L // 4), 7 * (L % 4)), at(8 + OF_L + 4 * k, 1), "prefix"
    yield 8, at(2 + G), at(136 + 32 * (G // 8) + 8 * k + G % 8)


@interleaved("IQ3_S")
def IQ3_S_R4(k):
    yield 16, at(0), halves(0, k)
    yield 8, at(2 + G), at(8 + 32 * (G // 8) + 8 * (G % 4) + 4 * (G % 8 // 4) + k)
    yield 8, at(66 + B), at(264 + 4 * B + k)
    yield 1, at(74 + J // 8, J % 8), at(296 + 16 * OF + 4 * k + J % 4, C // 4)
    yield 4, nibble(106, B), at(424 + (4 * B + k) % 16, 4 * ((4 * B + k) // 16))


# ---------------------------------------------------------------- rows that exist only here: X_R1
@interleaved("IQ1_S_R1")
def IQ1_S_R4(k):
    yield 8, at(np.arange(4)), at(4 * np.arange(4) + k)
    yield 16, at(4), at(16 + 2 * k)


@interleaved("IQ1_M_R1")
def IQ1_M_R4(k):
    yield 8, at(np.arange(6)), at(4 * np.arange(6) + k)
    yield 8, at(6), at(24 + k)


@interleaved("Q8_K_R1")
def Q8_K_R8(k):
    yield 16, at(0), halves(0, k)
    yield 8, at(2 + J), _bytes(16, k, 8, 256)


@interleaved("Q8_K_R1")
def Q8_K_R16(k):
    yield 16, at(0), halves(0, k)
    yield 8, at(2 + J), _bytes(32, k, 16, 256), "flip"


@interleaved("Q8_KV_R1")
def Q8_KV_R8(k):
    yield 8, at(J32), _bytes(0, k, 8, 32)


@interleaved("IQ2_BN")
def IQ2_BN_R4(k):
    j = np.arange(64)
    yield 2, at(j % 16, 2 * (j // 16)), at(16 * (j // 16) + 4 * k + j % 4, 2 * (j % 16 // 4))


@interleaved("BF16", columns=2)
def BF16_R16(k):
    yield 16, at(2 * np.arange(2)), at(4 * k + 2 * np.arange(2))
