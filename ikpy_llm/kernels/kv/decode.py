"""Tiles of a quantized cache back to numbers (kv/types.py says how they lie), exactly as the type defines them."""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from ..simd import F32, I32V, LANES, U8, U32V, Vec, load, ops, store
from ..simd.core import broadcast, constant
from ..simd.memory import emit_at, emit_load, emit_store, inline
from .store import QUADS, SIZE, is_signed
from .types import COLUMNS, KVType

F16X = Vec("f16", LANES)
TABLE = Vec("u8", 16)


def emit_code(b, kv: KVType, tile, v: int, flip: int):
    """Code vector v of the tile at that address, each code (or its level) ^ flip."""
    out, bit, offset = None, 0, 0
    for width in kv.planes:
        x, down = emit_load(b, emit_at(b, tile, (offset + v % width) * SIZE), U8.ir), width * (v // width) - bit
        if width < 8:
            wide = b.bitcast(x, U32V.ir)
            wide = b.lshr(wide, constant(U32V, down)) if down > 0 else b.shl(wide, constant(U32V, -down))
            x = b.and_(b.bitcast(wide, U8.ir), constant(U8, (1 << width) - 1 << bit))
        out = x if out is None else b.or_(out, x)
        offset, bit = offset + width, bit + width
    if kv.levels:
        table = constant(TABLE, [x ^ flip for x in kv.levels])
        return ops.lookup.op.pick(TABLE, U8)(b, types.none(TABLE, U8), table, out)
    return b.xor(out, constant(U8, flip)) if flip else out


def emit_codes(b, kv: KVType, tile, flip: int):
    """The eight code vectors of the tile at that address."""
    return [emit_code(b, kv, tile, v, flip) for v in range(8)]


def tile_decoder(kv: KVType, keys: bool):
    """Function (tile, scales, mins, target, stride): the values of a tile as f32; of keys to [column][position],
    of values to [position][column], rows `stride` bytes apart. scales, mins: addresses of f32[W].
    """
    flip = 128 if is_signed(kv, keys) else 0

    def keys_of(b, v, x, scales, mins, target, stride):
        words, d = b.bitcast(x, U32V.ir), emit_load(b, scales, F32.ir)
        for k in range(4):
            code = b.and_(b.lshr(words, constant(U32V, 8 * k)), constant(U32V, 255))
            value = b.fmul(b.sitofp(b.sub(code, constant(I32V, kv.zero)), F32.ir), d)
            value = b.fadd(value, emit_load(b, mins, F32.ir)) if kv.mins else value
            emit_store(b, value, b.add(target, b.mul(stride, stride.type(4 * v + k))))

    def values_of(b, v, x, scales, mins, target, stride):
        (part, quad), words = divmod(v, QUADS), b.bitcast(x, U32V.ir)
        for k in range(4):
            position, code = 4 * quad + k, b.and_(b.lshr(words, constant(U32V, 8 * k)), constant(U32V, 255))
            value = b.sitofp(b.sub(code, constant(I32V, kv.zero)), F32.ir)
            for source in (scales, mins) if kv.mins else (scales,):
                one = broadcast(b, emit_load(b, emit_at(b, source, 4 * position), F32.ir.element), F32)
                value = b.fmul(value, one) if source is scales else b.fadd(value, one)
            row = b.add(target, b.mul(stride, stride.type(position)))
            emit_store(b, value, emit_at(b, row, 4 * LANES * part))

    @intrinsic
    def decode(typingctx, tile, scales, mins, target, stride):
        def codegen(ctx, b, sig, args):
            for v, x in enumerate(emit_codes(b, kv, args[0], flip)):
                (keys_of if keys else values_of)(b, v, x, *args[1:])
            return ctx.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    return decode


def scales_reader(kv: KVType, dim: int):
    """Function (panel, g, scales, mins): the scales and minimums of a panel's tile g as f32[W] each."""
    tile_bytes, at_scales, row_scale, has_mins = LANES * kv.tile_row, kv.bits * SIZE, kv.row_scale, kv.mins

    @inline
    def read(panel, g, scales, mins):
        at = panel + g * tile_bytes + at_scales
        if row_scale:
            store(scales, load(F32, panel + dim // COLUMNS * tile_bytes))
        else:
            store(scales, ops.cast(F32, load(F16X, at)))
        if has_mins:
            store(mins, ops.cast(F32, load(F16X, at + 2 * LANES)))

    return read


def block_decoder(kv: KVType, keys: bool, dim: int, n_positions: int):
    """Function (cache, target, ahead): n_positions of a head, a whole number of panels, as f32: keys
    [panel][column][W], values [position][column]. What is needed next lies `ahead` bytes on.
    """
    decode, read_scales = tile_decoder(kv, keys), scales_reader(kv, dim)
    panel_bytes, tile_bytes = LANES * kv.row_bytes(dim), LANES * kv.tile_row
    spare_of = ops.stack(8 * LANES)
    part, stride = (COLUMNS * LANES * 4, LANES * 4) if keys else (COLUMNS * 4, dim * 4)

    def decode_block(cache, target, ahead):
        scales = spare_of()
        mins = scales + 4 * LANES
        for p in range(n_positions // LANES):
            panel, out = cache + p * panel_bytes, target + p * LANES * dim * 4
            for i in range(0, panel_bytes, 64):
                ops.prefetch(panel + ahead + i)
            for g in range(dim // COLUMNS):
                read_scales(panel, g, scales, mins)
                decode(panel + g * tile_bytes, scales, mins, out + g * part, stride)

    return inline(decode_block)
