"""Latent attention over the cache of latents, of which the values are the first columns: plain rows k[cell][k_dim], or
quantized, as keys lie (kv/types.py), whose values attention/int_values.py turns round for the integer products.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from ..kv.decode import scales_reader, tile_decoder
from ..kv.types import COLUMNS, KVType, kv_type
from ..simd import (
    F32,
    LANES,
    TARGET,
    Tile,
    inline,
    load_f32,
    ops,
    outer_fma,
    prefetch_l2,
    store_f32,
    tile_load,
    tile_zeros,
)
from ..simd.memory import emit_offset, emit_store, f32
from ..simd.ops import reduce_add

ROWS = 6  # at most side by side
CELLS = (
    2 if TARGET.name in ("avx2", "generic") else 4
)  # positions; ROWS * CELLS sums, CELLS + 1 loads fit the registers


def _store_sums(n: int):
    """Function (address, row stride, tile of n * CELLS): the sum of each vector to [row][cell] f32."""
    tile = Tile(F32, n * CELLS)

    @intrinsic
    def put(typingctx, address, stride, sums):
        def codegen(ctx, b, sig, values):
            address, stride, sums = values
            body, one = reduce_add.op.pick(F32), signature(f32, F32)
            for i in range(n):
                row = emit_offset(b, address, stride, i)
                for j in range(CELLS):
                    s = body(b, one, b.extract_value(sums, i * CELLS + j))
                    emit_store(b, s, b.add(row, ir.Constant(row.type, 4 * j)))
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64, tile), codegen

    return put


def score(n_rows: int, k_dim: int, n_positions: int, reader, elem: str):
    """Function (queries, keys, scores, ahead) as attention's: scores[row][position] of n_positions cells at keys; those
    needed next are `ahead` bytes on. A sum runs over d in LANES parts, which are added by halves. reader: that of
    attention/tile.py, elem: the type of the cache.
    """
    size = kv_type(elem).bits // 8
    at_once = next(n for n in range(ROWS, 0, -1) if n_rows % n == 0)
    put, n_sums, k_row, step = _store_sums(at_once), at_once * CELLS, k_dim * 4, k_dim * size
    read, per_step = reader(elem, CELLS), CELLS * LANES * size  # bytes read, and asked for, at a time

    @inline
    def score(queries, keys, scores, ahead):
        for first in range(0, n_positions, CELLS):
            cells = keys + first * step
            for row in range(0, n_rows, at_once):
                acc = tile_zeros(F32, n_sums)
                for d in range(0, k_dim, LANES):
                    for i in range(0, per_step, 64):
                        prefetch_l2(cells + ahead + d // LANES * per_step + i)
                    k = read(cells + d * size, step)
                    acc = outer_fma(acc, tile_load(F32, at_once, queries + row * k_row + d * 4, k_row), k)
                put(scores + (row * n_positions + first) * 4, n_positions * 4, acc)

    return score


# ---------------------------------------------------------------- quantized
def rows_reader(kv: KVType, k_dim: int):
    """Function (panel, first, width, target, n): columns first .. first + width, whole tiles, of the first n positions
    of a panel as f32 rows [width].
    """
    decode, read_scales, tile_bytes = tile_decoder(kv, True), scales_reader(kv, k_dim), LANES * kv.tile_row
    spare_of, row = ops.stack((COLUMNS + 2) * LANES * 4), LANES * 4

    @inline
    def read(panel, first, width, target, n):
        spare = spare_of()
        scales = spare + COLUMNS * row
        for g in range(first // COLUMNS, (first + width) // COLUMNS):
            read_scales(panel, g, scales, scales + row)
            decode(panel + g * tile_bytes, scales, scales + row, spare, row)
            for r in range(n):
                out = target + 4 * (r * width + g * COLUMNS - first)
                for c in range(COLUMNS):
                    store_f32(out + 4 * c, load_f32(spare + c * row + 4 * r))

    return read


def block_rows(kv: KVType, k_dim: int, n_positions: int):
    """Function (cache, target): n_positions rows, whole panels, as f32."""
    read, panel_bytes = rows_reader(kv, k_dim), LANES * kv.row_bytes(k_dim)

    @inline
    def rows(cache, target):
        for p in range(n_positions // LANES):
            read(cache + p * panel_bytes, 0, k_dim, target + p * LANES * k_dim * 4, LANES)

    return rows
