"""Quantizers of the KV cache, 32 columns at a time: the formulas which the reference runs when it writes its cache
(cheaper than those that make files; q4_0, q6_0 and iq4_nl differ from these).

encode(x, codes, inverse) -> (scale, minimum): 32 finite f32 at x become 32 bytes at codes. `inverse` is 1 / scale for
types with a scale per row, which is found before.
"""

from __future__ import annotations

import itertools

import numpy as np

from ..simd import (
    Vec,
    absolute,
    byte_vector,
    cast,
    inline,
    iota,
    load,
    load_f32,
    load_u8,
    lookup,
    maximum,
    minimum,
    reduce_add,
    reduce_max,
    rint,
    select,
    splat,
    stack,
    store,
    store_u8,
    zeros,
)
from .types import COLUMNS, KVType

X, I, B = Vec("f32", COLUMNS), Vec("i32", COLUMNS), Vec("u8", COLUMNS)
ZERO, ONE = np.float32(0), np.float32(1)
MOST_MOVES = 64  # of the refinement of iq4_nl; it ends by itself after a few


@inline
def _largest(x, v):
    """The first element of largest size, with its sign; v is the vector at x."""
    size = absolute(v)
    back = select(size >= splat(X, reduce_max(size)), splat(I, COLUMNS) - iota(I), zeros(I))
    return load_f32(x + 4 * (COLUMNS - max(reduce_max(back), 1)))


@inline
def _put(codes, q):
    """Whole numbers 0 to 255 in f32 as bytes."""
    store(codes, cast(B, cast(I, q)))


@inline
def _fit(v, q):
    """Factor of q that is closest to v where errors weigh v^2."""
    weighted = v * v * q
    size = reduce_add(weighted * q)
    return reduce_add(weighted * v) / size if size > ZERO else ZERO


def _symmetric(top: int):
    """q8_0: scale = largest size / 127. Rows with a scale of their own pass its inverse."""

    @inline
    def encode(x, codes, inverse):
        v = load(X, x)
        most = reduce_max(absolute(v))
        up = inverse
        if inverse == ZERO:
            up = np.float32(top) / most if most > ZERO else ZERO
        _put(codes, rint(v * up) + np.float32(top + 1))
        return most / np.float32(top), ZERO

    return encode


def _fitted(zero: int):
    """q4_0, q6_0: the element of largest size becomes -zero; then the scale is fitted."""

    @inline
    def encode(x, codes, inverse):
        v = load(X, x)
        most = _largest(x, v)
        up = np.float32(-zero) / most if most != ZERO else ZERO
        q = minimum(rint(v * up), splat(X, np.float32(zero - 1)))
        _put(codes, q + np.float32(zero))
        return _fit(v, q), ZERO

    return encode


def _centred(zero: int):
    """q5_0: the element of largest size becomes -zero."""

    @inline
    def encode(x, codes, inverse):
        v = load(X, x)
        scale = _largest(x, v) / np.float32(-zero)
        up = ONE / scale if scale != ZERO else ZERO
        q = cast(I, v * up + np.float32(zero + 0.5))
        _put(codes, cast(X, minimum(q, splat(I, 2 * zero - 1))))
        return scale, ZERO

    return encode


def _ranged(top: int):
    """q4_1, q5_1: from the smallest element to the largest."""

    @inline
    def encode(x, codes, inverse):
        v = load(X, x)
        low, high = -reduce_max(zeros(X) - v), reduce_max(v)
        scale = (high - low) / np.float32(top)
        up = ONE / scale if scale != ZERO else ZERO
        q = cast(I, (v - low) * up + np.float32(0.5))
        _put(codes, cast(X, minimum(q, splat(I, top))))
        return scale, low

    return encode


def _tabled(levels: tuple[int, ...], zero: int):
    """iq4_nl: nearest level of the element over -largest / 127, a fitted scale, then moves of one element by one level,
    the cheapest first, as long as the fit improves.
    """
    last, table, work_of = len(levels) - 1, byte_vector(levels), stack(4 * COLUMNS)
    level = [np.float32(x - zero) for x in levels]
    middles = tuple((a + b) / np.float32(2) for a, b in itertools.pairwise(level))

    @inline
    def values(index):
        return cast(X, lookup(table(), index)) - np.float32(zero)

    @inline
    def encode(x, codes, inverse):
        v, work = load(X, x), work_of()
        most = _largest(x, v)
        up = np.float32(-(zero - 1)) / most if most != ZERO else ZERO
        scaled, index = v * up, zeros(B)
        for i in range(last):
            index = index + select(scaled > splat(X, middles[i]), splat(B, 1), zeros(B))
        q = values(index)
        weights = v * v
        along, size = reduce_add(weights * v * q), reduce_add(weights * q * q)
        scale = along / size if size > ZERO else ZERO
        store(codes, index)
        for _ in range(MOST_MOVES if size > ZERO else 0):
            index = load(B, codes)
            q = values(index)
            pull = weights * (v - q * scale) * scale
            above = values(minimum(index, splat(B, last - 1)) + splat(B, 1)) - q
            below = values(maximum(index, splat(B, 1)) - splat(B, 1)) - q
            step = select(pull > splat(X, ZERO), above, below)
            can = select(pull == splat(X, ZERO), zeros(X), step)
            ease = select(can == splat(X, ZERO), zeros(X), pull / select(can == splat(X, ZERO), splat(X, ONE), can))
            best = reduce_max(ease)  # the move whose step is smallest for its pull
            if not best > ZERO:
                break
            back = select(ease >= splat(X, best), splat(I, COLUMNS) - iota(I), zeros(I))
            k = COLUMNS - max(reduce_max(back), 1)
            store(work, q)
            old = load_f32(work + 4 * k)
            store(work, step)
            new = old + load_f32(work + 4 * k)
            at = load_f32(x + 4 * k)
            moved = along + at * at * at * (new - old)
            grown = size + at * at * (new * new - old * old)
            if not moved * moved > scale * along * grown:
                break
            store_u8(codes + k, load_u8(codes + k) + (1 if new > old else -1))
            along, size, scale = moved, grown, moved / grown
        return scale, ZERO

    return encode


def encoder(kv: KVType):
    """encode of a quantized type."""
    if kv.levels:
        return _tabled(kv.levels, kv.zero)
    if kv.mins:
        return _ranged(kv.top)
    return {8: _symmetric(127), 6: _fitted(32), 5: _centred(16), 4: _fitted(8)}[kv.bits]
