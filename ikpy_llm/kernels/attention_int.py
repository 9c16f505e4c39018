"""Attention on quantized caches with integer products.

Keys: q is rounded to s8 with a float scale per 32 columns, and multiplied with the codes of a block as u8 x s8 sums; a
score is the sum over tiles of 32 columns, in order, of sum * scale of q * scale of the position (+ minimum * sum of q).
Values: per row and 32 columns, weight * scale of the position is rounded to 15 bits of the largest in the block; codes
as int16, pairs of positions side by side, are multiplied by such pairs and summed over the block in 32 bits.
A block of positions is decoded once for all rows that share it; 8-bit keys are read where they lie.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from .attention_layout import BLOCK
from .derive.tileops import dot_panels, fma_panels, fma_splat_panels, over_panels, panel_of
from .kv_decode import emit_codes, scales_reader
from .kv_store import PER_PAIR, SIZE, is_signed
from .kv_types import COLUMNS, KVType
from .simd import (
    F32,
    I16V,
    I32V,
    LANES,
    TARGET,
    Tile,
    Vec,
    absolute,
    cast,
    inline,
    load,
    maximum,
    ops,
    prefetch_l2,
    reduce_add,
    reduce_max,
    rint,
    select,
    splat,
    store,
    store_f32,
    store_i32,
    tile_load,
    tile_splat,
    tile_store,
    tile_zeros,
    zeros,
)
from .simd.core import broadcast, constant, shuffle
from .simd.dots import Dots
from .simd.memory import emit_load, emit_offset, emit_store

PANELS = 1 if TARGET.pairs16 else 2  # panels of keys side by side, whose sums of a full tile fit the registers
WIDE_V = 2  # vectors of values side by side
VECTOR = LANES * 4  # bytes
I8L, I16L = Vec("i8", LANES), Vec("i16", LANES)
MOST = np.float32(32767)
ZERO = np.float32(0)


def _at(b, base, offset: int):
    return b.add(base, base.type(offset)) if offset else base


# ---------------------------------------------------------------- keys
def query_bytes(n_rows: int, k_dim: int) -> int:
    """Bytes of the rounded rows of a tile: s8[k_dim / 4][n_rows][4], then for each 32 columns and row i32 start of
    sums, f32 scale, f32 sum.
    """
    return n_rows * (k_dim + 12 * (k_dim // COLUMNS))


def query_writer(kv: KVType, n_rows: int, k_dim: int):
    """Function (queries, n_used, target): f32 rows, k_dim apart, as above."""
    centred, groups = Dots(kv.top).centred, k_dim // COLUMNS
    zero, at_starts, row_step = kv.zero - 128 * centred, n_rows * k_dim, k_dim * 4
    at_scales = at_starts + 4 * n_rows * groups
    at_sums = at_scales + 4 * n_rows * groups
    spare_of = ops.stack(COLUMNS)

    def write(queries, n_used, target):
        spare = spare_of()
        for i in range(0, at_sums, VECTOR):  # rows that are not used are zeros
            store(target + i, zeros(F32))
        for row in range(n_used):
            for g in range(groups):
                x, most, total = queries + row * row_step + 4 * COLUMNS * g, zeros(F32), zeros(I32V)
                for d in range(0, COLUMNS, LANES):
                    most = maximum(absolute(load(F32, x + 4 * d)), most)
                top = reduce_max(most)
                up = np.float32(127) / top if top > ZERO else ZERO
                for d in range(0, COLUMNS, LANES):
                    q = cast(I32V, rint(load(F32, x + 4 * d) * up))
                    store(spare + d, cast(I8L, q))
                    total = total + q
                for j in range(8):
                    store_i32(target + ((g * 8 + j) * n_rows + row) * 4, ops.load_i32(spare + 4 * j))
                at, s, scale = 4 * (g * n_rows + row), reduce_add(total), top / np.float32(127)
                store_i32(target + at_starts + at, -zero * s)
                store_f32(target + at_scales + at, scale)
                store_f32(target + at_sums + at, np.float32(s) * scale)

    return inline(write)


def _codes_writer(kv: KVType):
    """Function (tile, target): the code vectors of a tile of keys as the products take them."""
    dots = Dots(kv.top)
    flip = 128 if dots.centred else 0

    @intrinsic
    def write(typingctx, tile, target):
        def codegen(ctx, b, sig, args):
            for v, x in enumerate(emit_codes(b, kv, args[0], flip)):
                emit_store(b, x, _at(b, args[1], v * SIZE))
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return write


def keys_bytes(k_dim: int) -> int:
    """Bytes of a decoded block of keys: f32 scales, minimums [panel][tile][2][W], then codes [panel][tile][8][4 W]."""
    return BLOCK * (k_dim // COLUMNS) * (8 + COLUMNS)


def keys_reader(kv: KVType, k_dim: int):
    """Function (cache, target, ahead): a block of keys as above; of 8-bit types the codes stay where they are."""
    read_scales, write_codes = scales_reader(kv, k_dim), _codes_writer(kv)
    panel_bytes, tile_bytes = LANES * kv.row_bytes(k_dim), LANES * kv.tile_row
    groups, packed = k_dim // COLUMNS, kv.bits < 8
    at_codes = BLOCK * groups * 8

    def read(cache, target, ahead):
        for p in range(BLOCK // LANES):
            panel = cache + p * panel_bytes
            for i in range(0, panel_bytes, 64):
                prefetch_l2(panel + ahead + i)
            for g in range(groups):
                n = p * groups + g
                read_scales(panel, g, target + n * 2 * VECTOR, target + n * 2 * VECTOR + VECTOR)
                if packed:
                    write_codes(panel + g * tile_bytes, target + at_codes + n * 8 * SIZE)

    return inline(read)


def scorer(kv: KVType, n_rows: int, k_dim: int, n_panels: int):
    """Function (queries, cache, block, first, scores): scores f32 [n_rows][n_panels][W] of the panels from `first`
    on of the block that keys_reader left at `block`; cache: where it came from.
    """
    groups, packed, mins = k_dim // COLUMNS, kv.bits < 8, kv.mins
    tile_bytes = 8 * SIZE if packed else LANES * kv.tile_row
    panel_bytes = tile_bytes * groups if packed else LANES * kv.row_bytes(k_dim)
    at_codes, scales_step = BLOCK * groups * 8, groups * 2 * VECTOR
    at_starts, part = n_rows * k_dim, 4 * n_rows * groups
    side = min(PANELS, n_panels)
    n = n_rows * side
    dots, scaled, summed = dot_panels(side, n_rows, 8, kv.top), fma_panels(side, n_rows), fma_splat_panels(side, n_rows)
    starts_of, floats_of = over_panels(side, n_rows, I32V), over_panels(side, n_rows, F32)
    panels_of = [panel_of(side, n_rows, p) for p in range(side)]
    first_of, last_of = panels_of[0], panels_of[-1]

    @inline
    def score(queries, cache, block, first, scores):
        for p in range(0, n_panels, side):
            codes = (block + at_codes if packed else cache) + (first + p) * panel_bytes
            scales = block + (first + p) * scales_step
            total = tile_zeros(F32, n)
            for g in range(groups):
                at = queries + at_starts + 4 * n_rows * g
                acc = starts_of(tile_splat(I32V, n_rows, at, 4))
                acc = dots(acc, codes + g * tile_bytes, panel_bytes, queries + g * n_rows * COLUMNS)
                x = cast(F32, acc) * floats_of(tile_splat(F32, n_rows, at + part, 4))
                total = scaled(x, scales + g * 2 * VECTOR, scales_step, total)
                if mins:
                    total = summed(at + 2 * part, scales + g * 2 * VECTOR + VECTOR, scales_step, total)
            tile_store(scores + p * VECTOR, n_panels * VECTOR, first_of(total))
            if side > 1:
                tile_store(scores + (p + 1) * VECTOR, n_panels * VECTOR, last_of(total))

    return score


# ---------------------------------------------------------------- values
def values_bytes(v_dim: int) -> int:
    """Bytes of a decoded block of values: int16 [pair of positions][column][2], then f32 scales and minimums
    [32 columns][2][position].
    """
    return BLOCK * (2 * v_dim + v_dim // COLUMNS * 8)


def _pairs_writer(kv: KVType, v_dim: int):
    """Function (tile, target): the codes of a tile of values as int16 without their zero."""
    signed = is_signed(kv, False)

    @intrinsic
    def write(typingctx, tile, target):
        def codegen(ctx, b, sig, args):
            for v, x in enumerate(emit_codes(b, kv, args[0], 0)):
                pair, part = divmod(v, PER_PAIR)
                for half in range(2):
                    short = shuffle(b, x, x, range(half * SIZE // 2, (half + 1) * SIZE // 2))
                    value = (b.sext if signed else b.zext)(short, I16V.ir)
                    value = value if signed or not kv.zero else b.sub(value, constant(I16V, kv.zero))
                    emit_store(b, value, _at(b, args[1], 4 * (pair * v_dim + (2 * part + half) * LANES)))
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return write


def values_reader(kv: KVType, v_dim: int, columns: int = 0, pairs_writer=_pairs_writer):
    """Function (cache, target, ahead): a block of values as above. columns: of a row of the cache, if more than these;
    pairs_writer: what writes the codes of a tile.
    """
    columns = columns or v_dim
    read_scales, write_pairs = scales_reader(kv, columns), pairs_writer(kv, v_dim)
    panel_bytes, tile_bytes, groups = LANES * kv.row_bytes(columns), LANES * kv.tile_row, v_dim // COLUMNS
    at_scales = BLOCK * 2 * v_dim

    def read(cache, target, ahead):
        for p in range(BLOCK // LANES):
            panel = cache + p * panel_bytes
            for i in range(0, panel_bytes, 64):
                prefetch_l2(panel + ahead + i)
            for g in range(groups):
                scales = target + at_scales + (g * 2 * BLOCK + p * LANES) * 4
                read_scales(panel, g, scales, scales + BLOCK * 4)
                write_pairs(panel + g * tile_bytes, target + (p * LANES // 2 * v_dim + g * COLUMNS) * 4)

    return inline(read)


def _outer_dot2(n_rows: int):
    """Function (acc [n_rows][WIDE_V], pairs of n_rows, WIDE_V vectors) -> acc + products of pairs."""
    tile, one = Tile(I32V, n_rows * WIDE_V), signature(I32V, I32V, I16V, I16V)

    @intrinsic
    def apply(typingctx, acc, x, y):
        def codegen(ctx, b, sig, args):
            acc, x, y = args
            body, out = ops.dot2.op.pick(I32V, I16V, I16V), acc
            for i in range(n_rows):
                pair = b.bitcast(b.extract_value(x, i), I16V.ir)
                for j in range(WIDE_V):
                    k = i * WIDE_V + j
                    out = b.insert_value(out, body(b, one, b.extract_value(acc, k), pair, b.extract_value(y, j)), k)
            return out

        return tile(tile, Tile(I32V, n_rows), Tile(I16V, WIDE_V)), codegen

    return apply


def _folder(n_rows: int):
    """Function (acc, sums, row step, factors): sums[row] += acc[row] * factors[row][0] + factors[row][1]."""
    tile, one = Tile(I32V, n_rows * WIDE_V), signature(F32, F32, F32, F32)

    @intrinsic
    def fold(typingctx, acc, sums, row_step, factors):
        def codegen(ctx, b, sig, args):
            acc, sums, row_step, factors = args
            for i in range(n_rows):
                row = emit_offset(b, sums, row_step, i)
                factor, minimum = (
                    broadcast(b, emit_load(b, _at(b, factors, 8 * i + 4 * k), F32.ir.element), F32) for k in range(2)
                )
                for j in range(WIDE_V):
                    x = b.sitofp(b.extract_value(acc, i * WIDE_V + j), F32.ir)
                    at = _at(b, row, j * VECTOR)
                    old = b.fadd(emit_load(b, at, F32.ir), minimum)
                    emit_store(b, ops.fma.op.body(b, one, x, factor, old), at)
            return ctx.get_dummy_value()

        return types.void(tile, types.int64, types.int64, types.int64), codegen

    return fold


def weigher(kv: KVType, n_rows: int, v_dim: int, wide: int):
    """Function (weights, n_used, block, n, sums, rest): the sums of a tile follow the weights of a block's first n
    positions; weights and sums as attention_tile.py lays them out, `wide` vectors side by side.
    """
    groups, mins, outer, fold = v_dim // COLUMNS, kv.mins, _outer_dot2(n_rows), _folder(n_rows)
    at_scales, row_step, n_sums = BLOCK * 2 * v_dim, 2 * BLOCK, n_rows * WIDE_V
    per_group, n_vectors = COLUMNS // LANES, v_dim // LANES // wide * wide
    rest_step = (v_dim // LANES - n_vectors) * VECTOR
    pairs_of, factors_of, spare_of = ops.stack(n_rows * row_step), ops.stack(8 * n_rows), ops.stack(4 * BLOCK)

    @inline
    def round_row(weights, row, scales, pairs, factors, spare):
        """weight * scale of a row's positions as int16; what 1 of them stands for, and the sum of weight * minimum."""
        most, low = zeros(F32), zeros(F32)
        for i in range(BLOCK // LANES):
            w = load(F32, weights + (i // wide * n_rows * wide + row * wide + i % wide) * VECTOR)
            seen = w > splat(F32, ZERO)  # scales of cells that nobody wrote may be NaN
            x = select(seen, w * load(F32, scales + i * VECTOR), zeros(F32))
            store(spare + i * VECTOR, x)
            most = maximum(absolute(x), most)
            if mins:
                low = low + select(seen, w * load(F32, scales + 4 * BLOCK + i * VECTOR), zeros(F32))
        top = reduce_max(most)
        up = MOST / top if top > ZERO else ZERO
        for i in range(BLOCK // LANES):
            x = rint(load(F32, spare + i * VECTOR) * up)
            store(pairs + row * row_step + i * LANES * 2, cast(I16L, cast(I32V, x)))
        store_f32(factors + 8 * row, top / MOST)
        store_f32(factors + 8 * row + 4, reduce_add(low) if mins else ZERO)

    def weigh(weights, n_used, block, n, sums, rest):
        pairs, factors, spare = pairs_of(), factors_of(), spare_of()
        for g in range(groups):
            for row in range(n_used):
                round_row(weights, row, block + at_scales + g * 8 * BLOCK, pairs, factors, spare)
            for k in range(0, per_group, WIDE_V):
                vector = g * per_group + k
                values, acc = block + vector * LANES * 4, tile_zeros(I32V, n_sums)
                for p in range((n + 1) // 2):
                    x = tile_splat(I32V, n_rows, pairs + 4 * p, row_step)
                    acc = outer(acc, x, tile_load(I16V, WIDE_V, values + p * v_dim * 4, VECTOR))
                if vector < n_vectors:
                    fold(acc, sums + (vector // wide * n_rows * wide + vector % wide) * VECTOR, wide * VECTOR, factors)
                else:
                    fold(acc, rest + (vector - n_vectors) * VECTOR, rest_step, factors)

    return inline(weigh)
