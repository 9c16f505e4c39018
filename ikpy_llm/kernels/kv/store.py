"""A row of keys or values into a quantized cache: its codes go to their places in a panel (kv/types.py)."""

from __future__ import annotations

import numpy as np

from ..simd import (
    F32,
    LANES,
    U8,
    U32V,
    Vec,
    absolute,
    cast,
    inline,
    load,
    load_u32,
    maximum,
    minimum,
    reduce_max,
    splat,
    stack,
    store,
    store_f16,
    store_f32,
    store_i32,
    zeros,
)
from .quantize import encoder
from .types import COLUMNS, MAX_HEAD, KVType

SIZE = U8.lanes  # bytes of a vector of codes
COLUMN_CODES = Vec("u8", LANES)
QUADS, PARTS = LANES // 4, COLUMNS // LANES  # quads of positions and parts of columns of a tile of values
F16_MAX = np.float32(65504)


def is_signed(kv: KVType, keys: bool) -> bool:
    """Whether 8-bit codes are kept as code - 128, which is what the products of values take."""
    return kv.bits == 8 and not keys


def _put_keys(kv: KVType):
    """Function (tile, lane, codes): a vector holds 4 columns of every position."""
    planes = kv.planes

    @inline
    def put(tile, lane, codes):
        at, bit = tile + 4 * lane, 0
        for p in range(len(planes)):
            width = planes[p]
            mask = ((1 << width) - 1) * 0x01010101
            for i in range(width):
                word = 0
                for j in range(i, 8, width):
                    word |= ((load_u32(codes + 4 * j) >> bit) & mask) << width * (j // width)
                store_i32(at, word)
                at += SIZE
            bit += width

    return put


def _put_values(kv: KVType):
    """Function (tile, lane, codes): vector [part][quad] holds W columns of 4 positions. Bits of other positions stay,
    so one thread writes all of a panel.
    """
    planes = kv.planes

    @inline
    def put(tile, lane, codes):
        for part in range(PARTS):
            v, words = part * QUADS + lane // 4, cast(U32V, load(COLUMN_CODES, codes + part * LANES))
            plane, bit = tile, 0
            for p in range(len(planes)):
                width = planes[p]
                mask, up = (1 << width) - 1, 8 * (lane % 4) + width * (v // width)
                at = plane + v % width * SIZE
                kept = load(U32V, at) & (0xFFFFFFFF ^ mask << up)
                store(at, kept | ((words >> bit) & mask) << up)
                plane, bit = plane + width * SIZE, bit + width

    return put


def row_writer(kv: KVType, keys: bool):
    """Function (x, dim, head, cell): the f32[dim] at x, which it may change, into the cache of a head as position
    `cell`. Values saturate at +-65504.
    """
    encode, put = encoder(kv), _put_keys(kv) if keys else _put_values(kv)
    tile_bytes, flip, row_scale, mins = LANES * kv.tile_row, 128 if is_signed(kv, keys) else 0, kv.row_scale, kv.mins
    codes_of, at_scales, row = stack(COLUMNS), kv.bits * SIZE, (kv.tile_row, 4 * kv.row_scale)
    bytes_of = Vec("u8", COLUMNS)

    @inline
    def write(x, dim, head, cell):
        most, codes = zeros(F32), codes_of()
        for d in range(0, dim, LANES):
            v = minimum(maximum(load(F32, x + 4 * d), splat(F32, -F16_MAX)), splat(F32, F16_MAX))
            store(x + 4 * d, v)
            most = maximum(most, absolute(v))
        panel = head + cell // LANES * LANES * (dim // COLUMNS * row[0] + row[1])
        lane, scale, inverse = cell % LANES, np.float32(0), np.float32(0)
        if row_scale:
            scale = reduce_max(most) / np.float32(127)
            inverse = np.float32(127) / reduce_max(most) if scale > np.float32(0) else np.float32(0)
        for g in range(dim // COLUMNS):
            tile = panel + g * tile_bytes
            d, m = encode(x + 4 * COLUMNS * g, codes, inverse)
            if flip:
                store(codes, load(bytes_of, codes) ^ flip)
            put(tile, lane, codes)
            if not row_scale:
                store_f16(tile + at_scales + 2 * lane, d)
            if mins:
                store_f16(tile + at_scales + 2 * (LANES + lane), m)
        if row_scale:
            store_f32(panel + dim // COLUMNS * tile_bytes + 4 * lane, scale)

    return write


SPARE = MAX_HEAD * 4  # bytes of a row that is prepared
