"""Scores on quantized keys by integer products, u8 x s8.

q is rounded to s8 with a float scale per 32 columns, and multiplied with the codes of a block; a score is the sum over
tiles of 32 columns, in order, of sum * scale of q * scale of the position (+ minimum * sum of q). A block of positions
is decoded once for all rows that share it; codes of 8 bits, and of 4 where queries are spread, are read where they
lie. Values: attention/int_values.py.

AVX2 without a dot-product instruction adds pairs of products in 16 bits. For 8-bit keys (codes up to 255) the sums of
neighbours in queries are bounded to 128 there; and queries are spread over vectors, which its multiplications take from
memory: 3 instructions for 32 products, 2 with codes below 16.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..derive.layout import MAGIC, MAGIC_BITS
from ..derive.tileops import fma_splat_panels, panel_of, plain_index, scaled_dots
from ..kv.decode import emit_codes, scales_reader
from ..kv.store import SIZE
from ..kv.types import COLUMNS, KVType
from ..simd import (
    F32,
    I32V,
    LANES,
    TARGET,
    Vec,
    absolute,
    cast,
    f32_bits,
    f32_from_bits,
    inline,
    load,
    load_i32,
    maximum,
    ops,
    prefetch_l2,
    reduce_add,
    reduce_max,
    rint,
    splat,
    store,
    store_i32,
    tile_store,
    tile_zeros,
    zeros,
)
from ..simd.core import op, shuffle
from ..simd.memory import emit_at, emit_store
from .dots import SPREAD, VECTOR, spread_dots, spread_sums
from .layout import BLOCK

PANELS = 1 if SPREAD else 2  # panels of keys side by side, whose sums of a full tile fit the registers
NUMBER = VECTOR if SPREAD else 4  # bytes of four codes, or of a float, of a query
I8L = Vec("i8", LANES)
ZERO = np.float32(0)
TINY = np.float32(1e-30)  # queries below count as zeros


@op(lambda v: v)
def neighbours(b, sig, v):
    """Lanes 1, 0, 3, 2, ..."""
    return shuffle(b, v, v, [i ^ 1 for i in range(sig.args[0].lanes)])


def query_bytes(n_rows: int, k_dim: int) -> int:
    """Bytes of the rounded rows of a tile: s8[k_dim / 4][n_rows][4], then for each 32 columns and row i32 start of
    sums, f32 scale, f32 -MAGIC * scale, f32 sum (derive/layout.py); where SPREAD all of them repeated.
    """
    return n_rows * NUMBER * (k_dim // 4 + 4 * (k_dim // COLUMNS))


def _bounds_pairs(top: int) -> bool:
    """Whether pairs of products with codes up to this leave 16 bits, unless the other factors' sums are bounded."""
    return TARGET.pairs16 and top > 127


def query_writer(kv: KVType, n_rows: int, k_dim: int):
    """Function (queries, n_used, target): f32 rows, k_dim apart, as above."""
    groups, zero, bounded = k_dim // COLUMNS, kv.zero, _bounds_pairs(kv.top)
    at_starts, row_step, part = n_rows * k_dim // 4 * NUMBER, k_dim * 4, NUMBER * n_rows * groups
    spare_of, minus_magic = ops.stack(COLUMNS), np.float32(-MAGIC)

    @inline
    def put(at, bits):
        if SPREAD:
            store(at, splat(I32V, bits))
        else:
            store_i32(at, bits)

    def write(queries, n_used, target):
        spare = spare_of()
        for i in range(0, at_starts + 3 * part if n_used < n_rows else 0, VECTOR):  # rows that are not used are zeros
            store(target + i, zeros(F32))
        for row in range(n_used):
            for g in range(groups):
                x, most, total = queries + row * row_step + 4 * COLUMNS * g, zeros(F32), zeros(I32V)
                for d in range(0, COLUMNS, LANES):
                    v = load(F32, x + 4 * d)
                    most = maximum(absolute(v), most)
                    if bounded:
                        most = maximum(absolute(v + neighbours(v)), most)
                top, up = reduce_max(most), ZERO
                scale = f32_from_bits(f32_bits(top / np.float32(127)) & 0xFFFFFFFC) if top > TINY else ZERO
                if scale > ZERO:
                    up = np.float32(1) / scale
                for d in range(0, COLUMNS, LANES):
                    q = cast(I32V, rint(load(F32, x + 4 * d) * up))
                    store(spare + d, cast(I8L, q))
                    total = total + q
                for j in range(8):
                    put(target + ((g * 8 + j) * n_rows + row) * NUMBER, load_i32(spare + 4 * j))
                at, s = target + at_starts + NUMBER * (g * n_rows + row), reduce_add(total)
                put(at, MAGIC_BITS - zero * s)
                put(at + part, f32_bits(scale))
                put(at + 2 * part, f32_bits(scale * minus_magic))
                put(at + 3 * part, f32_bits(np.float32(s) * scale))

    return inline(write)


def _codes_writer(kv: KVType):
    """Function (tile, target): the code vectors of a tile of keys."""

    @intrinsic
    def write(typingctx, tile, target):
        def codegen(ctx, b, sig, args):
            for v, x in enumerate(emit_codes(b, kv, args[0], 0)):
                emit_store(b, x, emit_at(b, args[1], v * SIZE))
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return write


def keys_bytes(k_dim: int) -> int:
    """Bytes of a decoded block of keys: for each panel f32 [tile][2][W] scales and minimums, and codes [tile][8][4 W]
    unless they are read where they lie; panels are as far apart as those the codes are read from.
    """
    return BLOCK * (k_dim // COLUMNS) * (8 + COLUMNS)


def _in_place(kv: KVType) -> bool:
    """Whether the products take codes from the cache."""
    return kv.bits == 8 or (kv.bits == 4 and SPREAD)


def _keys_strides(kv: KVType, k_dim: int) -> tuple[int, int]:
    """Bytes of a panel and of a tile of keys where their codes are read."""
    if _in_place(kv):
        return LANES * kv.row_bytes(k_dim), LANES * kv.tile_row
    return keys_bytes(k_dim) * LANES // BLOCK, 8 * SIZE


def keys_reader(kv: KVType, k_dim: int):
    """Function (cache, target, ahead): a block of keys as above."""
    read_scales, write_codes = scales_reader(kv, k_dim), _codes_writer(kv)
    panel_bytes, tile_bytes = LANES * kv.row_bytes(k_dim), LANES * kv.tile_row
    groups, packed, (step, tile_step) = k_dim // COLUMNS, not _in_place(kv), _keys_strides(kv, k_dim)
    at_codes = groups * 2 * VECTOR

    def read(cache, target, ahead):
        for p in range(BLOCK // LANES):
            panel, out = cache + p * panel_bytes, target + p * step
            if ahead != 0:
                for i in range(0, panel_bytes, 64):
                    prefetch_l2(panel + ahead + i)
            for g in range(groups):
                read_scales(panel, g, out + g * 2 * VECTOR, out + g * 2 * VECTOR + VECTOR)
                if packed:
                    write_codes(panel + g * tile_bytes, out + at_codes + g * tile_step)

    return inline(read)


def scorer(kv: KVType, n_rows: int, k_dim: int, n_panels: int):
    """Function (queries, cache, block, first, scores, ahead): scores f32 [n_rows][n_panels][W] of the panels from
    `first` on of the block that keys_reader left at `block`; cache: where it came from. What is needed next lies
    `ahead` bytes on.
    """
    tile_bytes, panel_bytes = LANES * kv.tile_row, LANES * kv.row_bytes(k_dim)
    groups, packed, mins = k_dim // COLUMNS, not _in_place(kv), kv.mins
    step, tile_step = _keys_strides(kv, k_dim)
    at_codes, at_starts, part = groups * 2 * VECTOR, n_rows * k_dim // 4 * NUMBER, NUMBER * n_rows * groups
    side, top = min(PANELS, n_panels), 127 if _bounds_pairs(kv.top) else kv.top
    n = n_rows * side
    dots = spread_dots(kv, n_rows, top) if SPREAD else scaled_dots(side, n_rows, 8, top, kv.zero)
    summed, row_part = spread_sums(n_rows) if SPREAD else fma_splat_panels(side, n_rows), NUMBER * n_rows
    panels_of = [panel_of(side, n_rows, p) for p in range(side)]
    first_of, last_of = panels_of[0], panels_of[-1]

    @inline
    def score(queries, cache, block, first, scores, ahead):
        for p in range(0, n_panels, side):
            scales = block + (first + p) * step
            codes = scales + at_codes if packed else cache + (first + p) * step
            total = tile_zeros(F32, n)
            for g in range(groups):
                at, near = queries + at_starts + row_part * g, scales + g * 2 * VECTOR
                here, later = queries + g * 8 * row_part, cache + (first + p) * panel_bytes + ahead + g * tile_bytes
                here_codes = plain_index(codes + g * tile_step)
                at, later, near = plain_index(at), plain_index(later), plain_index(near)
                for s in range(side):  # in small parts: a core has few reads under way at a time
                    for i in range(0, tile_bytes, 64):
                        prefetch_l2(later + s * panel_bytes + i)
                total = dots(total, here_codes, step, at, here, at + part, part, near)
                if mins:
                    total = summed(at + 3 * part, near + VECTOR, step, total)
            tile_store(scores + p * VECTOR, n_panels * VECTOR, first_of(total))
            if side > 1:
                tile_store(scores + (p + 1) * VECTOR, n_panels * VECTOR, last_of(total))

    return score
