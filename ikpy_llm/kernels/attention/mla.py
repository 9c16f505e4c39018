"""Multi-head latent attention (DeepSeek): a position is stored as one row of kv_lora_rank + n_rot columns, the normed
latent and the rotated part of the key that all heads share; or expanded, as keys and values of every head.

Threads take rows or heads of rows. State words: [0] rows, [1] position of the first. Layouts of expanded caches:
attention/layout.py.
"""

from __future__ import annotations

import numpy as np

from ..kv.store import SPARE, row_writer
from ..kv.types import PLAIN_COLUMNS, kv_type
from ..rows.heads import F16_MAX, _plain_writer, _turn, whole_plain_writer
from ..rows.rowwise import ELEMENT, scaled_copy, sum_squares
from ..simd import F32, LANES, f32, get, inline, load, load_f32, load_i64, stack, store, store_f16, store_f32
from .latent import rows_reader
from .tile import reader


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


@inline
def _columns(dim):
    """KVType.columns of plain numbers."""
    return (dim + PLAIN_COLUMNS - 1) // PLAIN_COLUMNS * PLAIN_COLUMNS


def latent_store(style: str, k_type: str = "f16"):
    """cache[pos % n_cells] = (c / sqrt(mean(c^2) + eps) * w, pe turned), as plain rows or quantized as keys. Words: c
    f32 [n][rank], pe f32 [n][n_rot], cache, rank, n_rot, n_cells, w, eps (f32), table, state. rank is a multiple of 16,
    where quantized of 32 like n_rot.
    """
    turn, row_of, kv = _turn(style, False), stack(SPARE), kv_type(k_type)
    write, unit = whole_plain_writer(kv.name, False) if kv.is_plain else row_writer(kv, True), kv.unit()

    def latent_store(c, pe, cache, rank, n_rot, n_cells, w, eps: f32, table, state, ith, nth):
        n, pos0, latent = load_i64(state), load_i64(state + 8), row_of()
        columns = (rank + n_rot + unit - 1) // unit * unit
        for i in range(rank + n_rot, columns):
            store_f32(latent + i * ELEMENT, np.float32(0))
        for row in range(n * ith // nth, n * (ith + 1) // nth):
            pos, source = pos0 + row, c + row * rank * ELEMENT
            scale = np.float32(1) / np.sqrt(sum_squares(source, rank) / np.float32(rank) + eps)
            for i in range(0, rank, LANES):
                store(latent + i * ELEMENT, load(F32, source + i * ELEMENT) * scale * load(F32, w + i * ELEMENT))
            angles = table + pos * n_rot * ELEMENT
            turn(pe + row * n_rot * ELEMENT, latent + rank * ELEMENT, angles, 0, n_rot, n_rot, np.float32(0))
            write(latent, columns, cache, pos % n_cells)

    return latent_store


def latents(k_dim: int, k_type: str = "f16"):
    """y = columns first .. first + width of the cached rows of k_dim, of all positions, as f32. Words: cache, first, y,
    width, state. Where quantized, first and width are multiples of 32.
    """
    kv, elem, size = kv_type(k_type), k_type, kv_type(k_type).bits // 8
    if not kv.is_plain:
        read, panel_bytes = rows_reader(kv, k_dim), LANES * kv.row_bytes(k_dim)

        def latents(cache, first, y, width, state, ith, nth):
            n = load_i64(state)
            n_panels = (n + LANES - 1) // LANES
            for p in range(n_panels * ith // nth, n_panels * (ith + 1) // nth):
                target = y + p * LANES * width * ELEMENT
                read(cache + p * panel_bytes, first, width, target, min(LANES, n - p * LANES))

        return latents

    widened, spare_of, k_columns = reader(elem, 1), stack(LANES * ELEMENT), kv.columns(k_dim)

    def latents(cache, first, y, width, state, ith, nth):
        n, whole, spare = load_i64(state), width // LANES * LANES, spare_of()
        for row in range(n * ith // nth, n * (ith + 1) // nth):
            source, target = cache + (row * k_columns + first) * size, y + row * width * ELEMENT
            for i in range(0, whole, LANES):
                store(target + i * ELEMENT, get(widened(source + i * size, 0), 0))
            if whole < width:  # a row of the cache ends with a whole vector, one of y may not
                store(spare, get(widened(source + whole * size, 0), 0))
                scaled_copy(spare, target + whole * ELEMENT, width - whole, width - whole, np.float32(1))

    return latents


def keys():
    """Keys of every head into panels: n_nope columns from kv f32 [n][n_head][kv_head], then the n_rot that all heads
    share, turned already: pe f32 [n][n_rot]. Words: kv, kv_head, pe, kcache, n_head, n_nope, n_rot, n_cells, state.
    """

    def keys(kv, kv_head, pe, kcache, n_head, n_nope, n_rot, n_cells, state, ith, nth):
        total, pos0, columns = load_i64(state) * n_head, load_i64(state + 8), _columns(n_nope + n_rot)
        for item in range(total * ith // nth, total * (ith + 1) // nth):
            row, head = item // n_head, item % n_head
            cell = (pos0 + row) % n_cells
            target = kcache + ((head * n_cells + cell // LANES * LANES) * columns + cell % LANES) * 2
            for d in range(n_nope):
                x = load_f32(kv + (item * kv_head + d) * ELEMENT)
                store_f16(target + d * LANES * 2, min(max(x, -F16_MAX), F16_MAX))
            for d in range(n_rot):
                x = load_f32(pe + (row * n_rot + d) * ELEMENT)
                store_f16(target + (n_nope + d) * LANES * 2, min(max(x, -F16_MAX), F16_MAX))
            for d in range(n_nope + n_rot, columns):
                store_f16(target + d * LANES * 2, np.float32(0))

    return keys


def values():
    """Values of every head as rows: columns first .. first + v_dim of kv f32 [n][n_head][kv_head]. Words: kv, kv_head,
    first, vcache, n_head, v_dim, n_cells, state.
    """
    write = _plain_writer("f16", False)

    def values(kv, kv_head, first, vcache, n_head, v_dim, n_cells, state, ith, nth):
        total, pos0 = load_i64(state) * n_head, load_i64(state + 8)
        for item in range(total * ith // nth, total * (ith + 1) // nth):
            cell = (pos0 + item // n_head) % n_cells
            source, columns = kv + (item * kv_head + first) * ELEMENT, _columns(v_dim)
            write(source, v_dim, columns, vcache + item % n_head * n_cells * columns * 2, cell)

    return values
