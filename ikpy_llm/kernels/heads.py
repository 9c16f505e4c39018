"""Heads of q and k between matrix product and attention: norm, rotation, and storing them in the KV cache.

A head is head_dim f32; heads are [n_tokens][n_head][head_dim]. Threads take heads, each is computed by the same
arithmetic in every kernel. State words: [0] n_tokens, [1] pos0. Layout of the cache: attention_layout.py.
"""

from __future__ import annotations

import numpy as np

from .rowwise import ELEMENT, sum_squares
from .simd import (
    F16,
    F32,
    I32V,
    LANES,
    Vec,
    bits,
    cast,
    f32,
    inline,
    load,
    load_f32,
    load_i64,
    maximum,
    minimum,
    splat,
    store,
    store_f16,
    store_f32,
)

PAIRS = Vec("i64", LANES)  # pairs of f32, first in the low half
F16_MAX = np.float32(65504)
STYLES = ("norm", "neox")


@inline
def _unzip(address):
    """(even, odd) elements of the 2 * LANES floats at address."""
    pairs = load(PAIRS, address)
    return bits(F32, cast(I32V, pairs)), bits(F32, cast(I32V, pairs >> 32))


@inline
def _zip(address, even, odd):
    """Store even[0], odd[0], even[1], ... at address."""
    low = cast(PAIRS, bits(I32V, even)) & 0xFFFFFFFF
    store(address, low | (cast(PAIRS, bits(I32V, odd)) << 32))


def _pairs(style: str):
    """(read, write, places) of the pairs i .. i + LANES, and of pair i: neighbours ("norm") or halves ("neox")."""
    if style == "norm":

        @inline
        def read(address, i, half):
            return _unzip(address + 2 * i * ELEMENT)

        @inline
        def write(address, i, half, a, b):
            _zip(address + 2 * i * ELEMENT, a, b)

        @inline
        def places(i, half):
            return 2 * i * ELEMENT, (2 * i + 1) * ELEMENT
    elif style == "neox":

        @inline
        def read(address, i, half):
            return load(F32, address + i * ELEMENT), load(F32, address + (half + i) * ELEMENT)

        @inline
        def write(address, i, half, a, b):
            store(address + i * ELEMENT, a)
            store(address + (half + i) * ELEMENT, b)

        @inline
        def places(i, half):
            return i * ELEMENT, (half + i) * ELEMENT
    else:
        raise ValueError(f"rope style {style!r}: accepted are {', '.join(STYLES)}")
    return read, write, places


def _turn(style: str, norm: bool):
    """turn(source, target, angles, w, head_dim, n_rot, eps): one head, normed if `norm`, its pairs rotated."""
    read, write, places = _pairs(style)

    @inline
    def turn(source, target, angles, w, head_dim, n_rot, eps):
        half = n_rot // 2
        whole = half // LANES * LANES
        scale = np.float32(1)
        if norm:
            scale = np.float32(1) / np.sqrt(sum_squares(source, head_dim) / np.float32(head_dim) + eps)
        for i in range(0, whole, LANES):
            a, b = read(source, i, half)
            if norm:
                wa, wb = read(w, i, half)
                a, b = a * scale * wa, b * scale * wb
            c, s = _unzip(angles + 2 * i * ELEMENT)
            write(target, i, half, a * c - b * s, a * s + b * c)
        for i in range(whole, half):
            at_a, at_b = places(i, half)
            x, y = load_f32(source + at_a), load_f32(source + at_b)
            if norm:
                x, y = x * scale * load_f32(w + at_a), y * scale * load_f32(w + at_b)
            cos, sin = load_f32(angles + 2 * i * ELEMENT), load_f32(angles + (2 * i + 1) * ELEMENT)
            store_f32(target + at_a, x * cos - y * sin)
            store_f32(target + at_b, x * sin + y * cos)
        for i in range(n_rot * ELEMENT, head_dim * ELEMENT, ELEMENT):
            x = load_f32(source + i)
            store_f32(target + i, x * scale * load_f32(w + i) if norm else x)

    return turn


def rope(style: str, norm: bool = False):
    """Turn pairs of the first n_rot elements of each head by the angles of their position: (a, b) -> (a cos - b sin, a
    sin + b cos). With `norm` the head is first x / sqrt(mean(x^2) + eps) * w.

    Pair i is (2i, 2i + 1) for style "norm" and (i, i + n_rot / 2) for "neox"; the other elements are copied. Words: x,
    y, table, n_head, head_dim, n_rot, w, eps (f32), state; table: f32 [n_ctx][n_rot / 2][2] with cos, sin. y may be x.
    """
    turn = _turn(style, norm)

    def rope(x, y, table, n_head, head_dim, n_rot, w, eps: f32, state, ith, nth):
        pos0, total, size = load_i64(state + 8), load_i64(state) * n_head, head_dim * ELEMENT
        for item in range(total * ith // nth, total * (ith + 1) // nth):
            angles = table + (pos0 + item // n_head) * n_rot * ELEMENT
            turn(x + item * size, y + item * size, angles, w, head_dim, n_rot, eps)

    return rope


@inline
def _saturate(v):
    return minimum(maximum(v, splat(F32, -F16_MAX)), splat(F32, F16_MAX))


def kv_store(style: str = "", norm: bool = False):
    """Put the step's keys and values into the cache as f16, saturating at +-65504; position p goes to cell p % n_cells.

    With a style, keys are rotated first (as by `rope`, in place: k is written). Words: k, v, kcache, vcache, n_head_kv,
    k_dim, v_dim, n_cells, table, n_rot, w, eps (f32), state.
    k f32 [n][n_head_kv * k_dim], v f32 [n][n_head_kv * v_dim].
    """
    turns = bool(style)
    turn = _turn(style or "norm", norm)

    def kv_store(k, v, kcache, vcache, n_head_kv, k_dim, v_dim, n_cells, table, n_rot, w, eps: f32, state, ith, nth):
        total, pos0 = load_i64(state) * n_head_kv, load_i64(state + 8)
        for item in range(total * ith // nth, total * (ith + 1) // nth):
            pos, head = pos0 + item // n_head_kv, item % n_head_kv
            cell = pos % n_cells
            source = k + item * k_dim * ELEMENT
            if turns:
                turn(source, source, table + pos * n_rot * ELEMENT, w, k_dim, n_rot, eps)
            target = kcache + ((head * n_cells + cell // LANES * LANES) * k_dim + cell % LANES) * 2
            for d in range(k_dim):
                x = load_f32(source + d * ELEMENT)
                store_f16(target + d * LANES * 2, min(max(x, -F16_MAX), F16_MAX))
            source, target = v + item * v_dim * ELEMENT, vcache + (head * n_cells + cell) * v_dim * 2
            for d in range(0, v_dim // LANES * LANES, LANES):
                store(target + d * 2, cast(F16, _saturate(load(F32, source + d * ELEMENT))))
            for d in range(v_dim // LANES * LANES, v_dim):
                store_f16(target + d * 2, min(max(load_f32(source + d * ELEMENT), -F16_MAX), F16_MAX))

    return kv_store
