"""Multi-head latent attention (DeepSeek): a position is stored as one row of kv_lora_rank + n_rot f16, the normed
latent and the rotated part of the key that all heads share; or expanded, as keys and values of every head.

Threads take rows or heads of rows. State words: [0] rows, [1] position of the first. Layouts of expanded caches:
attention_layout.py.
"""

from __future__ import annotations

import numpy as np

from .heads import F16_MAX, _saturate, _turn
from .rowwise import ELEMENT, sum_squares
from .simd import (
    F16,
    F32,
    LANES,
    cast,
    f32,
    load,
    load_f16,
    load_f32,
    load_i64,
    stack,
    store,
    store_f16,
)

MAX_ROT = 256  # columns that rotate


def rope_part(style: str):
    """Columns x_first .. x_first + n_rot of each head of x, turned, to columns y_first .. of each head of y. Words: x,
    x_head (columns of a head), x_first, y, y_head, y_first, table, n_head, n_rot, state. y may be x, at the same place.
    """
    turn = _turn(style, False)

    def rope_part(x, x_head, x_first, y, y_head, y_first, table, n_head, n_rot, state, ith, nth):
        pos0, total = load_i64(state + 8), load_i64(state) * n_head
        for item in range(total * ith // nth, total * (ith + 1) // nth):
            angles = table + (pos0 + item // n_head) * n_rot * ELEMENT
            source, target = x + (item * x_head + x_first) * ELEMENT, y + (item * y_head + y_first) * ELEMENT
            turn(source, target, angles, 0, n_rot, n_rot, np.float32(0))

    return rope_part


def latent_store(style: str):
    """cache[pos % n_cells] = (c / sqrt(mean(c^2) + eps) * w, pe turned), as f16. Words: c f32 [n][rank], pe f32
    [n][n_rot], cache, rank, n_rot, n_cells, w, eps (f32), table, state. rank is a multiple of 16.
    """
    turn, turned_of = _turn(style, False), stack(4 * MAX_ROT)

    def latent_store(c, pe, cache, rank, n_rot, n_cells, w, eps: f32, table, state, ith, nth):
        n, pos0, turned = load_i64(state), load_i64(state + 8), turned_of()
        for row in range(n * ith // nth, n * (ith + 1) // nth):
            pos, source = pos0 + row, c + row * rank * ELEMENT
            target = cache + pos % n_cells * (rank + n_rot) * 2
            scale = np.float32(1) / np.sqrt(sum_squares(source, rank) / np.float32(rank) + eps)
            for i in range(0, rank, LANES):
                v = load(F32, source + i * ELEMENT) * scale * load(F32, w + i * ELEMENT)
                store(target + i * 2, cast(F16, _saturate(v)))
            angles = table + pos * n_rot * ELEMENT
            turn(pe + row * n_rot * ELEMENT, turned, angles, 0, n_rot, n_rot, np.float32(0))
            for i in range(n_rot):
                store_f16(target + (rank + i) * 2, min(max(load_f32(turned + i * ELEMENT), -F16_MAX), F16_MAX))

    return latent_store


def latents():
    """y = the latents of all positions, as f32. Words: cache, row_bytes, y, rank, state."""

    def latents(cache, row_bytes, y, rank, state, ith, nth):
        n = load_i64(state)
        for row in range(n * ith // nth, n * (ith + 1) // nth):
            for i in range(0, rank, LANES):
                store(y + (row * rank + i) * ELEMENT, cast(F32, load(F16, cache + row * row_bytes + i * 2)))

    return latents


def keys(cached: bool):
    """Keys of every head into panels: n_nope columns from kv f32 [n][n_head][kv_head], then the n_rot that all heads
    share, turned already: pe f32 [n][n_rot], or f16 rows pe_bytes apart if cached. Words: kv, kv_head, pe, pe_bytes,
    kcache, n_head, n_nope, n_rot, n_cells, state.
    """

    def keys(kv, kv_head, pe, pe_bytes, kcache, n_head, n_nope, n_rot, n_cells, state, ith, nth):
        total, pos0, k_dim = load_i64(state) * n_head, load_i64(state + 8), n_nope + n_rot
        for item in range(total * ith // nth, total * (ith + 1) // nth):
            row, head = item // n_head, item % n_head
            cell = (pos0 + row) % n_cells
            target = kcache + ((head * n_cells + cell // LANES * LANES) * k_dim + cell % LANES) * 2
            for d in range(n_nope):
                x = load_f32(kv + (item * kv_head + d) * ELEMENT)
                store_f16(target + d * LANES * 2, min(max(x, -F16_MAX), F16_MAX))
            for d in range(n_rot):
                x = load_f16(pe + row * pe_bytes + d * 2) if cached else load_f32(pe + row * pe_bytes + d * ELEMENT)
                store_f16(target + (n_nope + d) * LANES * 2, min(max(x, -F16_MAX), F16_MAX))

    return keys


def values():
    """Values of every head as rows: columns first .. first + v_dim of kv f32 [n][n_head][kv_head]. Words: kv, kv_head,
    first, vcache, n_head, v_dim, n_cells, state. v_dim is a multiple of 16.
    """

    def values(kv, kv_head, first, vcache, n_head, v_dim, n_cells, state, ith, nth):
        total, pos0 = load_i64(state) * n_head, load_i64(state + 8)
        for item in range(total * ith // nth, total * (ith + 1) // nth):
            cell = (pos0 + item // n_head) % n_cells
            source = kv + (item * kv_head + first) * ELEMENT
            target = vcache + (item % n_head * n_cells + cell) * v_dim * 2
            for d in range(0, v_dim, LANES):
                store(target + d * 2, cast(F16, _saturate(load(F32, source + d * ELEMENT))))

    return values
