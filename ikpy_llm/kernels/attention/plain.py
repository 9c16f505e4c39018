"""Attention as the formula says it, for `-fa off` and as oracle of the fused kernel: a row at a time, all its scores,
one softmax, one sum, in float32 on the decoded cache. Slow: every row decodes all keys and values it sees.
"""

from __future__ import annotations

import numpy as np

from ..kv.decode import block_decoder
from ..kv.hadamard import rotation
from ..kv.types import KVType, kv_type
from ..rows.rowwise import scaled_copy
from ..simd import (
    F32,
    I32V,
    LANES,
    f32,
    fma,
    get,
    inline,
    iota,
    load,
    load_f32,
    load_i64,
    maximum,
    reduce_add,
    reduce_max,
    select,
    splat,
    stack,
    store,
    store_f32,
    zeros,
)
from ..simd.mathfn import tanh
from . import latent as attention_latent
from .layout import BLOCK
from .tile import ELEMENT_BYTES, LOG2E, exp2, first_visible, reader

HIDDEN = np.float32(-np.inf)


def _decoder(kv: KVType, keys: bool, dim: int):
    """Function (cache, target): the BLOCK positions at cache as f32, in panels [column][W] or as rows [column]."""
    if not kv.is_plain:
        decode = block_decoder(kv, keys, dim, BLOCK)

        @inline
        def decode_block(cache, target):
            decode(cache, target, 0)

        return decode_block
    read, size = reader(kv.name, 1), ELEMENT_BYTES[kv.name]

    @inline
    def widen(cache, target):
        for i in range(0, BLOCK * dim, LANES):
            store(target + 4 * i, get(read(cache + size * i, 0), 0))

    return widen


def attend(
    k_dim: int,
    v_dim: int,
    latent: bool = False,
    softcap: bool = False,
    k_type: str = "f16",
    v_type: str = "f16",
    khad: bool = False,
    vhad: bool = False,
):
    """What attention.attend computes, with its words; scratch: attention_layout.plain_scratch_bytes."""
    k_kv, v_kv = kv_type(k_type), kv_type(k_type if latent else v_type)
    k_columns, y_columns = k_kv.columns(k_dim, khad), v_kv.columns(v_dim, vhad)
    v_columns = k_columns if latent else y_columns  # of a row in the cache
    decode_k, decode_v = _decoder(k_kv, not latent, k_columns), _decoder(v_kv, False, v_columns)
    if latent and not k_kv.is_plain:
        decode_k = decode_v = attention_latent.block_rows(k_kv, k_columns, BLOCK)
    k_cell, v_cell = k_kv.row_bytes(k_columns), v_kv.row_bytes(v_columns)
    rotate_q, rotate_y = (rotation(n) if on else _nothing for n, on in ((k_columns, khad), (y_columns, vhad)))
    block_of, query_of, sums_of = (
        stack(4 * BLOCK * max(k_columns, v_columns)),
        stack(4 * k_columns),
        stack(4 * y_columns),
    )

    @inline
    def score_panel(query, panel):
        """Scores of W positions."""
        sums = zeros(F32)
        for d in range(k_columns):
            sums = fma(load(F32, panel + 4 * LANES * d), splat(F32, load_f32(query + 4 * d)), sums)
        return sums

    @inline
    def score_rows(query, rows, target):
        """Scores of W positions that lie as rows."""
        for p in range(LANES):
            sums = zeros(F32)
            for d in range(0, k_columns, LANES):
                sums = fma(load(F32, rows + 4 * (p * k_columns + d)), load(F32, query + 4 * d), sums)
            store_f32(target + 4 * p, reduce_add(sums))

    @inline
    def one_row(query, y, keys, values, n_cells, first, pos, cap, scores, buffer):
        """y, in all columns, of the row at position pos, which sees the positions from `first` on."""
        start, most = first // BLOCK * BLOCK, splat(F32, HIDDEN)
        for block in range(start, pos + 1, BLOCK):
            decode_k(keys + block % n_cells * k_cell, buffer)
            for p in range(0, BLOCK, LANES):
                at = scores + 4 * (block - start + p)
                if latent:
                    score_rows(query, buffer + 4 * p * k_columns, at)
                else:
                    store(at, score_panel(query, buffer + 4 * p * k_columns))
                s, positions = load(F32, at), iota(I32V) + (block + p)
                if softcap:
                    s = tanh(s / cap) * cap
                s = select(positions >= first, s, splat(F32, HIDDEN))
                s = select(positions <= pos, s, splat(F32, HIDDEN))
                store(at, s)
                most = maximum(s, most)
        top, total = reduce_max(most), zeros(F32)
        for d in range(0, y_columns, LANES):
            store(y + 4 * d, zeros(F32))
        for block in range(start, pos + 1, BLOCK):
            decode_v(values + block % n_cells * v_cell, buffer)
            for p in range(0, BLOCK, LANES):
                at = scores + 4 * (block - start + p)
                weights = exp2((load(F32, at) - top) * LOG2E)
                store(at, weights)
                total = total + weights
            for p in range(min(BLOCK, pos + 1 - block)):
                w = splat(F32, load_f32(scores + 4 * (block - start + p)))
                for d in range(0, y_columns, LANES):
                    store(y + 4 * d, fma(load(F32, buffer + 4 * (p * v_columns + d)), w, load(F32, y + 4 * d)))
        scaled_copy(y, y, y_columns, y_columns, np.float32(1) / reduce_add(total))
        rotate_y(y)

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
        n_tokens, pos0, group = load_i64(state), load_i64(state + 8), n_head // n_head_kv
        query, sums, buffer, scores = query_of(), sums_of(), block_of(), scratch + ith * 4 * (n_cells + 2 * BLOCK)
        for item in range(ith, n_tokens * n_head, nth):
            token, head = item // n_head, item % n_head
            at, pos = token * n_head_all + first_head + head, pos0 + item // n_head
            scaled_copy(q + 4 * at * k_dim, query, k_dim, k_columns, scale)
            rotate_q(query)
            keys = kcache + head // group * n_cells * k_cell
            values = vcache + head // group * n_cells * v_cell
            first = first_visible(pos, window)
            one_row(query, sums, keys, values, n_cells, first, pos, cap, scores, buffer)
            scaled_copy(sums, y + 4 * at * v_dim, v_dim, v_dim, np.float32(1))

    return attend


@inline
def _nothing(address):
    """In place of a rotation."""
