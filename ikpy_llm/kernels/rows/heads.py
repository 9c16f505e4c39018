"""Heads of q and k between matrix product and attention: norm, rotation, and storing them in the KV cache.

A head is head_dim f32; heads are [n_tokens][n_head][head_dim]. Threads take heads, each is computed by the same
arithmetic in every kernel. State words: [0] n_tokens, [1] pos0. Layout of the cache: attention/layout.py.
"""

from __future__ import annotations

import numpy as np

from ..kv.hadamard import PAIRS, rotation, unzip
from ..kv.store import F16_MAX, SPARE, row_writer
from ..kv.types import kv_type
from ..simd import (
    F16,
    F32,
    I32V,
    LANES,
    bits,
    cast,
    f32,
    f32_bits,
    inline,
    load,
    load_f32,
    load_i64,
    maximum,
    minimum,
    splat,
    stack,
    store,
    store_f16,
    store_f32,
    store_i16,
)
from .rowwise import ELEMENT, scaled_copy, sum_squares

STYLES = ("norm", "neox")


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
            return unzip(address + 2 * i * ELEMENT)

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
            c, s = unzip(angles + 2 * i * ELEMENT)
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


def _plain_writer(elem: str, keys: bool):
    """Function (x, dim, columns, head, cell): the f32[dim] at x as numbers of this type, saturating at +-65504 in f16,
    and zeros for the other columns; keys lie in panels of W cells, values as rows.
    """
    size, is_f16, is_bf16 = 4 if elem == "f32" else 2, elem == "f16", elem == "bf16"

    @inline
    def put(at, x):
        if is_f16:
            store_f16(at, min(max(x, -F16_MAX), F16_MAX))
        elif is_bf16:
            n = f32_bits(x)
            store_i16(at, (n + 0x7FFF + ((n >> 16) & 1)) >> 16 if (n & 0x7FFFFFFF) <= 0x7F800000 else n >> 16 | 64)
        else:
            store_f32(at, x)

    @inline
    def write_key(x, dim, columns, head, cell):
        at = head + (cell // LANES * LANES * columns + cell % LANES) * size
        for d in range(dim):
            put(at + d * LANES * size, load_f32(x + d * ELEMENT))
        for d in range(dim, columns):
            put(at + d * LANES * size, np.float32(0))

    @inline
    def write_value(x, dim, columns, head, cell):
        at, whole = head + cell * columns * size, 0 if is_bf16 else dim // LANES * LANES
        for d in range(0, whole, LANES):
            v = load(F32, x + d * ELEMENT)
            if is_f16:
                store(at + d * size, cast(F16, _saturate(v)))
            else:
                store(at + d * size, v)
        for d in range(whole, dim):
            put(at + d * size, load_f32(x + d * ELEMENT))
        for d in range(dim, columns):
            put(at + d * size, np.float32(0))

    return write_key if keys else write_value


def whole_plain_writer(elem: str, keys: bool):
    """Function (x, columns, head, cell) as kv_store.row_writer's: the f32[columns] at x as numbers of this type."""
    write = _plain_writer(elem, keys)

    @inline
    def write_all(x, columns, head, cell):
        write(x, columns, columns, head, cell)

    return write_all


def _writer(type_name: str, rotated: int, keys: bool):
    """(function (x, dim, columns, head, cell) that stores one head of one position in so many columns; the unit of
    those, bytes of a unit and bytes of a row besides). rotated: head size, if it first goes through a Hadamard
    rotation.
    """
    kv = kv_type(type_name)
    unit = kv.unit(bool(rotated))
    if kv.is_plain and not rotated:
        return _plain_writer(kv.name, keys), (unit, unit * kv.bits // 8, 0)
    rotate, spare_of = rotation(kv.columns(rotated, True)) if rotated else None, stack(SPARE)
    write = whole_plain_writer(kv.name, keys) if kv.is_plain else row_writer(kv, keys)

    @inline
    def write_copy(x, dim, columns, head, cell):
        spare = spare_of()
        scaled_copy(x, spare, dim, columns, np.float32(1))
        if rotated:
            rotate(spare)
        write(spare, columns, head, cell)

    return write_copy, (unit, unit * kv.bits // 8, 0) if kv.is_plain else (unit, kv.tile_row, 4 * kv.row_scale)


def kv_store(
    style: str = "", norm: bool = False, k_type: str = "f16", v_type: str = "f16", khad: int = 0, vhad: int = 0
):
    """Put the step's keys and values into the cache in their types; position p goes to cell p % n_cells.

    With a style, keys are rotated first (as by `rope`, in place: k is written). Words: k, v, kcache, vcache, n_head_kv,
    k_dim, v_dim, n_cells, table, n_rot, w, eps (f32), state.
    k f32 [n][n_head_kv * k_dim], v f32 [n][n_head_kv * v_dim]. khad, vhad: head sizes, if heads are to go through a
    Hadamard rotation. A panel of W positions is written by one thread.
    """
    turns = bool(style)
    turn = _turn(style or "norm", norm)
    write_k, (k_unit, k_part, k_rest) = _writer(k_type, khad, keys=True)
    write_v, (v_unit, v_part, v_rest) = _writer(v_type, vhad, keys=False)

    def kv_store(k, v, kcache, vcache, n_head_kv, k_dim, v_dim, n_cells, table, n_rot, w, eps: f32, state, ith, nth):
        n, pos0 = load_i64(state), load_i64(state + 8)
        k_units, v_units = (k_dim + k_unit - 1) // k_unit, (v_dim + v_unit - 1) // v_unit
        k_head, v_head = n_cells * (k_units * k_part + k_rest), n_cells * (v_units * v_part + v_rest)
        panel0 = pos0 // LANES
        total = ((pos0 + n - 1) // LANES + 1 - panel0) * n_head_kv
        for item in range(total * ith // nth, total * (ith + 1) // nth):
            panel, head = panel0 + item // n_head_kv, item % n_head_kv
            for pos in range(max(panel * LANES, pos0), min((panel + 1) * LANES, pos0 + n)):
                cell, row = pos % n_cells, (pos - pos0) * n_head_kv + head
                source = k + row * k_dim * ELEMENT
                if turns:
                    turn(source, source, table + pos * n_rot * ELEMENT, w, k_dim, n_rot, eps)
                write_k(source, k_dim, k_units * k_unit, kcache + head * k_head, cell)
                write_v(v + row * v_dim * ELEMENT, v_dim, v_units * v_unit, vcache + head * v_head, cell)

    return kv_store
