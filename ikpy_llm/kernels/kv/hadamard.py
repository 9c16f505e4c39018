"""The Hadamard rotation of a head: y = H x / sqrt(n), its own inverse, which spreads outliers before quantizing.

n is the largest power of two that divides the head; longer heads are rotated in pieces of n.
"""

from __future__ import annotations

import numpy as np

from ..simd import F32, I32V, LANES, Vec, bits, cast, inline, load, stack, store

PAIRS = Vec("i64", LANES)  # pairs of f32, first in the low half


@inline
def unzip(address):
    """(even, odd) elements of the 2 * LANES floats at address."""
    pairs = load(PAIRS, address)
    return bits(F32, cast(I32V, pairs)), bits(F32, cast(I32V, pairs >> 32))


def rotation(dim: int):
    """Function (address): the f32[dim] there, rotated in place.

    One pass puts sums of neighbours into the lower half and differences into the upper; log2(n) passes make H.
    """
    n = dim & -dim
    if n < 32:
        raise ValueError(f"Hadamard rotation of heads of {dim}: accepted are multiples of 32")
    half, scale = n // 2, np.float32(n**-0.5)
    n_passes = n.bit_length() - 1
    spare_of = stack(4 * n)

    @inline
    def one(source, target, factor):
        for i in range(0, half, LANES):
            a, b = unzip(source + 8 * i)
            store(target + 4 * i, (a + b) * factor)
            store(target + 4 * (half + i), (a - b) * factor)

    def rotate(address):
        spare = spare_of()
        for piece in range(0, dim, n):
            x = address + 4 * piece
            for i in range(n_passes):
                if i % 2 == 0:
                    one(x, spare, np.float32(1))
                else:
                    one(spare, x, scale if i == n_passes - 1 else np.float32(1))
            if n_passes % 2:
                for i in range(0, n, LANES):
                    store(x + 4 * i, load(F32, spare + 4 * i) * scale)

    return inline(rotate)
