"""Flash attention over the KV cache: one source for prompts and single tokens, with bit-identical results.

The arithmetic of a row (a token and a head) is fixed, whoever computes it: positions in blocks of BLOCK update a
running softmax, blocks in chunks of CHUNK, both counted from position 0; chunks are joined in order. Scores are sums
over d in order, outputs are sums over positions in order. What a row must not see gets weight 0, which changes no bit.
Rows that share a KV head are tiles of ROWS that share the loads of K and V.

Weights are powers of two: q is scaled by log2(e) besides the caller's scale. State words: [0] n_tokens, [1] pos0.
Layout: attention/layout.py.
"""

from __future__ import annotations

import numpy as np

from ..kv.hadamard import rotation
from ..kv.types import KVType, kv_type
from ..rows.rowwise import scaled_copy
from ..simd import (
    F32,
    LANES,
    atomic_add,
    atomic_store,
    f32,
    fma,
    inline,
    load,
    load_f32,
    load_i64,
    prefetch_l2,
    reduce_max,
    splat,
    stack,
    store,
    store_f32,
)
from .int_scores import keys_bytes, keys_reader, query_bytes
from .int_values import values_bytes, values_reader
from .layout import BLOCK, CACHE_LINE, CHUNK, DEALT, DONE, FEW, HEADER, LEFT, ROWS, SPLIT_TOKENS, partial_bytes
from .tile import LOG2E, LOWEST, TILES, VECTOR, exp2, first_visible, tile_of, work_bytes


@inline
def _chunks(pos0, n_tokens, window):
    """(first, end) of the chunks that a step's rows see."""
    return first_visible(pos0, window) // CHUNK, (pos0 + n_tokens - 1) // CHUNK + 1


def _join(v_dim, columns, rotate):
    """clear, join and finish partial results: maximum m, sum of weights l, sums over V in so many columns, of which
    v_dim are the head's, after their rotation.
    """

    @inline
    def clear(total):
        store_f32(total, LOWEST)
        store_f32(total + 4, np.float32(0))
        for d in range(0, columns, LANES):
            store(total + (HEADER + d) * 4, splat(F32, np.float32(0)))

    @inline
    def join(total, part):
        """total += part. A part that saw nothing changes no bit."""
        m, m_part = load_f32(total), load_f32(part)
        m_new = max(m, m_part)
        a, b = exp2(splat(F32, m - m_new)), exp2(splat(F32, m_part - m_new))
        store_f32(total, m_new)
        store_f32(total + 4, load_f32(total + 4) * reduce_max(a) + load_f32(part + 4) * reduce_max(b))
        for d in range(0, columns, LANES):
            at = (HEADER + d) * 4
            store(total + at, fma(load(F32, part + at), b, load(F32, total + at) * a))

    @inline
    def finish(total, y):
        """y = sums / l, 0 where nothing was seen; the sums are lost."""
        l, sums = load_f32(total + 4), total + HEADER * 4
        scale = np.float32(1) / l if l > np.float32(0) else np.float32(0)
        scaled_copy(sums, sums, columns, columns, scale)
        rotate(sums)
        scaled_copy(sums, y, v_dim, v_dim, np.float32(1))

    return clear, join, finish


@inline
def _nothing(address):
    """In place of a rotation."""


def _block_of(kv: KVType, keys: bool, dim: int, latent: int = 0):
    """(function that decodes a block of a quantized cache, memory for that); latent: columns of a row of latents."""
    if kv.is_plain:

        @inline
        def nothing(cache, target, ahead):
            pass

        return nothing, stack(64)
    if keys:
        return keys_reader(kv, dim), stack(keys_bytes(dim))
    return values_reader(kv, dim, latent), stack(values_bytes(dim))


def attend(
    k_dim: int,
    v_dim: int,
    latent: bool = False,
    softcap: bool = False,
    k_type: str = "f16",
    v_type: str = "f16",
    khad: bool = False,
    vhad: bool = False,
    few: int = FEW,
):
    """y = softmax(q k^T * scale) v over the cache, causal, grouped heads.

    Words: q, kcache, vcache, y, n_head, n_head_kv, first_head, n_head_all, n_cells, window, scale (f32), cap (f32),
    scratch, counters, state.
    q f32 [n][n_head_all * k_dim], y f32 [n][n_head_all * v_dim], of which n_head heads from first_head; window 0 sees
    all positions up to its own, else the last `window` of them; position p lies in cell p % n_cells. scratch:
    attention_layout.scratch_bytes. counters: n_counters int64, 0 before and after. Heads of any size are worked on in
    the columns that the cache has of them (KVType.columns).
    softcap: scores s become cap * tanh(s / cap).
    latent: the cache is rows of k_dim for each KV head, whose first v_dim columns are the values; vcache is kcache.
    Where it is quantized they lie as keys do.
    k_type, v_type: of the cache (kv/types.py). khad, vhad: keys, values went into it through a Hadamard rotation.
    few: rows of the narrow tile, fewer than ROWS; no result depends on it.

    In steps of at most SPLIT_TOKENS tokens threads get chunks of the sequence; who finishes the last chunk of some rows
    joins them, in order. Rows, and the last quarter of the chunks, go to whoever comes first.
    """
    if not 1 <= few < ROWS:
        raise ValueError(f"attention with a tile of {few} rows: accepted are 1 to {ROWS - 1}")
    k_kv, v_kv = kv_type(k_type), kv_type(k_type if latent else v_type)
    columns = k_kv.columns(k_dim, khad), v_kv.columns(v_dim, vhad)
    clear, join, finish = _join(v_dim, columns[1], rotation(columns[1]) if vhad else _nothing)
    prepare, start, score, weigh, take = tile_of(ROWS, *columns, k_kv, v_kv, latent, softcap)
    prepare_few, start_few, score_few, weigh_few, take_few = tile_of(few, *columns, k_kv, v_kv, latent, softcap)
    k_cell, v_cell = k_kv.row_bytes(columns[0]), v_kv.row_bytes(columns[0 if latent else 1])
    decode_k, k_block = _block_of(k_kv, True, columns[0])
    decode_v, v_block = _block_of(v_kv, False, columns[1], columns[0] if latent else 0)
    part_step, k_row, k_columns = partial_bytes(v_dim), columns[0] * 4, columns[0]
    work_step = work_bytes(ROWS, columns[1])
    narrow = TILES * few  # at most so many rows may go through narrow tiles alone
    queries_of = stack((TILES * ROWS + ROWS) * k_row)  # the last tile may reach past the last row
    totals_of = stack(TILES * ROWS * part_step)
    part_of = stack(part_step)
    works_of = stack(TILES * work_step)
    q_step = query_bytes(ROWS, k_columns)  # of a tile of quantized rows
    prepared_of = stack(64 if k_kv.is_plain else TILES * q_step)
    k_quantized, v_quantized = not k_kv.is_plain, not v_kv.is_plain
    rotate_q = rotation(k_columns) if khad else _nothing

    @inline
    def gather(q, queries, row0, n_rows, group, head0, n_head_all, scale):
        """Rows of a KV head, scaled, one after the other; zeros for ROWS more."""
        for row in range(n_rows):
            source = q + ((row0 + row) // group * n_head_all + head0 + (row0 + row) % group) * k_dim * 4
            scaled_copy(source, queries + row * k_row, k_dim, k_columns, scale)
            rotate_q(queries + row * k_row)
        for i in range(n_rows * k_row, (n_rows + ROWS - 1) * k_row, VECTOR):
            store(queries + i, splat(F32, np.float32(0)))

    @inline
    def place(row, group, head, n_head):
        """Number of a KV head's row among all (token, head)."""
        return row // group * n_head + head * group + row % group

    @inline
    def hidden(block, n, row, group, pos0, window):
        """Whether none of the n rows from `row` on sees anything of a block."""
        last, first = pos0 + (row + n - 1) // group, first_visible(pos0 + row // group, window)
        return block > last or block + BLOCK <= first

    @inline
    def tail(n):
        """What the last n rows, less than a full tile, cost in rows."""
        return 0 if n == 0 else few if n <= few else ROWS

    def attend(
        q,
        kcache,
        vcache,
        y,
        n_head,
        n_head_kv,
        first_head,
        n_head_all,
        n_cells,
        window,
        scale: f32,
        cap: f32,
        scratch,
        counters,
        state,
        ith,
        nth,
    ):
        n_tokens, pos0, limit = load_i64(state), load_i64(state + 8), cap * LOG2E
        group = n_head // n_head_kv
        n_rows = n_tokens * group  # of a KV head: row = token * group + head
        first_chunk, end_chunk = _chunks(pos0, n_tokens, window)
        split = n_tokens <= SPLIT_TOKENS and end_chunk - first_chunk > 1
        n_spans = end_chunk - first_chunk if split else 1
        n_tiles = (n_rows + ROWS - 1) // ROWS
        # results depend neither on the rows of a tile nor on those of an item
        tall, item_rows = ROWS, min(max(n_tiles * n_head_kv * n_spans // (4 * nth), 1), TILES) * ROWS
        if n_rows <= narrow and (n_rows + few - 1) // few * few < n_rows // ROWS * ROWS + tail(n_rows % ROWS):
            tall, item_rows = few, narrow
        n_parts = (n_rows + item_rows - 1) // item_rows
        queries, totals, part, works = queries_of(), totals_of(), part_of(), works_of()
        keys_of_block, values_of_block, prepared = k_block(), v_block(), prepared_of()
        n_items, ready, following, finished = n_parts * n_head_kv * n_spans, -1, -1, 0
        # neighbouring chunks: what is prefetched past the end of one is used; late rows, which see most, come first
        own = n_items * 3 // (4 * nth) if split else 0
        index, end_own = ith * own, ith * own + own
        while True:
            if index >= end_own:
                index = nth * own + atomic_add(counters + 8 * DEALT, 1)
                if index >= n_items:
                    break
            span, head, late = index % n_spans, index // n_spans % n_head_kv, index // n_spans // n_head_kv
            row0 = (n_parts - 1 - late) * item_rows
            used = min(item_rows, n_rows - row0)
            keys, values = kcache + head * n_cells * k_cell, vcache + head * n_cells * v_cell
            if index // n_spans != ready:
                gather(q, queries, row0, used, group, first_head + head * group, n_head_all, scale * LOG2E)
                ready = index // n_spans
                for tile in range(0, used if k_quantized else 0, tall):
                    left, target = min(tall, used - tile), prepared + tile // tall * q_step
                    if left > few:
                        prepare(queries + tile * k_row, left, target)
                    else:
                        prepare_few(queries + tile * k_row, left, target)
            first = first_visible(pos0 + row0 // group, window)
            chunk0 = max(first_chunk + span, first // CHUNK)
            cell = max(chunk0 * CHUNK, first // BLOCK * BLOCK) % n_cells
            if index != following or span == 0:  # else the chunk before asked for it
                for i in range(0, BLOCK * k_cell, CACHE_LINE):
                    prefetch_l2(keys + cell * k_cell + i)
                for i in range(0, BLOCK * v_cell, CACHE_LINE):
                    prefetch_l2(values + cell * v_cell + i)
            following = index + 1
            pos_high, joined = pos0 + (row0 + used - 1) // group, 0
            for chunk in range(chunk0, first_chunk + span + 1 if split else end_chunk):
                begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, pos_high + 1)
                if begin > pos_high:
                    break
                lap = begin // n_cells * n_cells  # what the ring has gone round
                for tile in range(0, used, tall):
                    work = works + tile // tall * work_step
                    if min(tall, used - tile) > few:
                        start(work)
                    else:
                        start_few(work)
                for block in range(max(begin, first // BLOCK * BLOCK), end, BLOCK):
                    at_k, at_v = keys + (block - lap) * k_cell, values + (block - lap) * v_cell
                    ahead = BLOCK if block + BLOCK <= pos_high else 0
                    if k_quantized:
                        decode_k(at_k, keys_of_block, 0)
                    for tile in range(0, used, tall):
                        left, r = min(tall, used - tile), row0 + tile
                        if hidden(block, left, r, group, pos0, window):
                            continue
                        at_q, work = queries + tile * k_row, works + tile // tall * work_step
                        if k_quantized:
                            at_q = prepared + tile // tall * q_step
                        near = ahead if tile == 0 else 0  # the first tile asks for what comes next
                        rows = left, r, group, pos0, window
                        if left > few:
                            score(at_q, work, at_k, keys_of_block, block, end, rows, limit, near)
                        else:
                            score_few(at_q, work, at_k, keys_of_block, block, end, rows, limit, near)
                    if v_quantized:  # only now: what was asked for last has had the time of the scores to arrive
                        decode_v(at_v, values_of_block, 0)
                    for tile in range(0, used, tall):
                        left, r = min(tall, used - tile), row0 + tile
                        if hidden(block, left, r, group, pos0, window):
                            continue
                        work, near = works + tile // tall * work_step, ahead if tile == 0 else 0
                        rows = left, r, group, pos0, window
                        if left > few:
                            weigh(work, at_v, values_of_block, block, end, rows, near)
                        else:
                            weigh_few(work, at_v, values_of_block, block, end, rows, near)
                for tile in range(0, used, tall):
                    left, work = min(tall, used - tile), works + tile // tall * work_step
                    for row in range(left):
                        target = part if joined > 0 else totals + (tile + row) * part_step
                        if split:
                            at = place(row0 + tile + row, group, head, n_head)
                            target = scratch + (at * n_spans + span) * part_step
                        if left > few:
                            take(work, row, target)
                        else:
                            take_few(work, row, target)
                        if joined > 0 and not split:
                            join(totals + (tile + row) * part_step, part)
                joined += 1
            for row in range(used):
                if not split:
                    out = place(row0 + row, group, head, n_head_all) + first_head
                    finish(totals + row * part_step, y + out * v_dim * 4)
                elif joined == 0:
                    clear(scratch + (place(row0 + row, group, head, n_head) * n_spans + span) * part_step)
            done, finished, index = counters + 8 * (DONE + late * n_head_kv + head), finished + 1, index + 1
            if not split or (index < end_own and index // n_spans == ready):
                continue  # a shared counter is dear
            share, finished = finished, 0
            if atomic_add(done, share) == n_spans - share:
                atomic_store(done, 0)
                for row in range(used):
                    at = place(row0 + row, group, head, n_head)
                    clear(part)
                    for i in range(n_spans):
                        join(part, scratch + (at * n_spans + i) * part_step)
                    out = place(row0 + row, group, head, n_head_all) + first_head
                    finish(part, y + out * v_dim * 4)
        if atomic_add(counters + 8 * LEFT, 1) == nth - 1:
            atomic_store(counters + 8 * DEALT, 0)
            atomic_store(counters + 8 * LEFT, 0)

    return attend
