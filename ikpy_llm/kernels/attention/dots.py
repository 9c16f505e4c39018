"""The integer products of attention: of queries with keys (attention/int_scores.py), of weights with values
(attention/int_values.py). Their order is fixed here, so that sums stay in registers.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from ..derive.tileops import _pack
from ..kv.decode import emit_code
from ..kv.store import QUADS, SIZE
from ..kv.types import KVType
from ..simd import F32, I8V, I16V, I32V, LANES, TARGET, U8, Tile, Vec, ops
from ..simd.core import assembly, broadcast, call, constant, fence, held, shuffle
from ..simd.dots import Dots
from ..simd.memory import emit_at, emit_load, emit_offset, emit_store
from .layout import BLOCK

VECTOR = LANES * 4  # bytes
SPREAD = TARGET.pairs16  # numbers of queries fill vectors
WORDS = TARGET.pairs16  # weights of values are int16
SIGNED = TARGET.name == "neon" and "i8mm" not in TARGET.isa  # sdot takes only signed bytes, usdot of i8mm unsigned ones
TOP_BYTE = 127 if SIGNED else 255  # the largest weight as a byte
WEIGHTS = 2 * BLOCK  # bytes of the rounded weights of a row
RUN, PARTS_V = 8, 1 if WORDS else 2  # quads of positions in a run of products, vectors of columns side by side


@intrinsic
def fenced(typingctx, at):
    """The address, from which what was loaded before is loaded again, where registers are few."""

    def codegen(ctx, b, sig, args):
        if TARGET.pairs16:
            fence(b)
        return args[0]

    return types.int64(types.int64), codegen


def added(b, name: str, x, y):
    """x + y by this instruction, in the order emitted: sums that LLVM orders need more registers than there are."""
    if TARGET.emulated:
        return b.add(x, y)
    return assembly(b, x.type, f"{name} $1, $2, $0", "=x,x,x", y, x, ordered=True)


def spread_dots(kv: KVType, n: int, top: int):
    """tileops.scaled_dots of a panel and n rows for queries that are spread."""
    dots, tile, one, widened = Dots(top), Tile(F32, n), signature(F32, F32, F32, F32), Dots(255).scaled
    fma, order = ops.fma.op.body, range(8)
    if kv.bits == 4:
        order = 0, 4, 1, 5, 2, 6, 3, 7  # two of each plane

    @intrinsic
    def apply(typingctx, acc, weights, stride, start, codes, scales, offset, row_scales):
        def codegen(ctx, b, sig, values):
            acc, weights, _, start, codes, scales, offset, row_scales = values
            sums = [emit_load(b, emit_at(b, start, VECTOR * c), I32V.ir) for c in range(n)]
            ones = held(b, constant(I16V, 1))
            for first in range(0, 8, dots.length):
                partial = [None] * n
                for v in order[first : first + dots.length]:
                    if kv.bits == 4:
                        w = emit_code(b, kv, weights, v, 0)
                    else:
                        w = emit_load(b, emit_at(b, weights, v * SIZE), U8.ir)
                    for c in range(n):
                        x = emit_load(b, emit_at(b, codes, VECTOR * (v * n + c)), I8V.ir)
                        x = call(b, "llvm.x86.avx2.pmadd.ub.sw", I16V.ir, w, x)
                        partial[c] = x if partial[c] is None else added(b, "vpaddw", partial[c], x)
                        if dots.length == 1:
                            sums[c] = widened(b, sums[c], x, ones)
                if dots.length > 1:
                    sums = [widened(b, x, y, ones) for x, y in zip(sums, partial, strict=True)]
            row = emit_load(b, row_scales, F32.ir)
            for c, x in enumerate(sums):
                at = emit_at(b, scales, VECTOR * c)
                d, minus = emit_load(b, at, F32.ir), emit_load(b, b.add(at, offset), F32.ir)
                x = fma(b, one, b.bitcast(x, F32.ir), d, minus)
                acc = b.insert_value(acc, fma(b, one, x, row, b.extract_value(acc, c)), c)
            return acc

        return tile(tile, *[types.int64] * 7), codegen

    return apply


def spread_sums(n: int):
    """tileops.fma_splat_panels of a panel and n floats that are spread."""
    tile, one = Tile(F32, n), signature(F32, F32, F32, F32)

    @intrinsic
    def apply(typingctx, floats, at, stride, acc):
        def codegen(ctx, b, sig, values):
            floats, at, _, acc = values
            v = emit_load(b, at, F32.ir)
            for c in range(n):
                x = emit_load(b, emit_at(b, floats, VECTOR * c), F32.ir)
                acc = b.insert_value(acc, ops.fma.op.body(b, one, x, v, b.extract_value(acc, c)), c)
            return acc

        return tile(types.int64, types.int64, types.int64, tile), codegen

    return apply


def float_products(elem: str, n_rows: int, wide: int):
    """Function (acc f32 tile [n_rows][wide], numbers, row step, at, stride) -> acc plus each row's f32 number times
    `wide` vectors of this type at `at`, `stride` bytes apart: one after the other, so that all sums stay in registers.
    """
    tile, one = Tile(F32, n_rows * wide), signature(F32, F32, F32, F32)
    vector = Vec({"f32": "f32", "f16": "f16", "bf16": "u16"}[elem], LANES)

    @intrinsic
    def apply(typingctx, acc, numbers, row_step, at, stride):
        def codegen(ctx, b, sig, args):
            acc, numbers, row_step, at, stride = args
            rows = (emit_load(b, emit_offset(b, numbers, row_step, i), F32.ir.element) for i in range(n_rows))
            factors, out = [broadcast(b, x, F32) for x in rows], [None] * tile.n
            for j in range(wide):
                v = emit_load(b, emit_offset(b, at, stride, j), vector.ir)
                v = ops.bf16_to_f32.op.body(b, signature(F32, vector), v) if elem == "bf16" else v
                v = b.fpext(v, F32.ir) if elem == "f16" else v
                for i, x in enumerate(factors):
                    k = i * wide + j
                    out[k] = ops.fma.op.body(b, one, x, v, b.extract_value(acc, k))
                fence(b)
            return _pack(b, tile, out)

        return tile(tile, *[types.int64] * 4), codegen

    return apply


def byte_products(n_rows: int):
    """Function (acc i32 tile [n_rows][PARTS_V], codes, panel stride, weights, masks) -> acc + codes s8 [panel][part]
    [quad][4 W] times weights u8 [n_rows][BLOCK] of RUN quads of positions.
    """
    tile, args = Tile(I32V, n_rows * PARTS_V), (I32V, U8, I8V)
    dot, one = (ops.dot4_small if TOP_BYTE < 128 else ops.dot4).op.pick(*args), signature(I32V, *args)

    @intrinsic
    def apply(typingctx, acc, codes, stride, weights, masks):
        def codegen(ctx, b, sig, args):
            acc, codes, stride, weights, _ = args
            out = [b.extract_value(acc, i) for i in range(tile.n)]
            for quad in range(RUN):
                at = emit_offset(b, codes, stride, quad // QUADS)
                v = [emit_load(b, emit_at(b, at, (j * QUADS + quad % QUADS) * SIZE), I8V.ir) for j in range(PARTS_V)]
                for row in range(n_rows):
                    word = emit_load(b, emit_at(b, weights, row * WEIGHTS + 4 * quad), I32V.ir.element)
                    w = b.bitcast(broadcast(b, word, I32V), U8.ir)
                    for j in range(PARTS_V):
                        k = row * PARTS_V + j
                        out[k] = dot(b, one, out[k], w, v[j])
            return _pack(b, tile, out)

        return tile(tile, *[types.int64] * 4), codegen

    return apply


def word_products(n_rows: int, halves: bool):
    """As byte_products for weights int16 as _rounder leaves them; acc [n_rows][2] holds W / 2 columns of two pairs
    each. halves: codes of 4 bits are bytes & i16[2 W] at `masks`.
    """
    tile, half, quads, long = Tile(I32V, n_rows * 2), Vec("u8", 2 * LANES), Vec("i64", LANES // 2), ir.IntType(64)
    add = Dots(255).scaled  # in this order: of 6 rows 12 sums, two vectors of codes, weights and products fit

    @intrinsic
    def apply(typingctx, acc, codes, stride, weights, masks):
        def codegen(ctx, b, sig, args):
            acc, codes, stride, weights, masks = args
            out = [b.extract_value(acc, i) for i in range(tile.n)]
            for quad in range(RUN):
                at = emit_at(b, emit_offset(b, codes, stride, quad // QUADS), quad % QUADS * SIZE)
                v = [emit_load(b, emit_at(b, at, h * half.lanes), half.ir) for h in range(2)]
                if halves:
                    fence(b)  # the mask is an operand in memory, not a register that is missing
                    mask = emit_load(b, masks, I16V.ir)
                    v = [b.and_(b.zext(x, I16V.ir), mask) for x in v]
                else:
                    v = [b.sext(x, I16V.ir) for x in v]
                for row in range(n_rows):
                    place = quad & ~3 | (quad & 1) << 1 | (quad & 2) >> 1
                    word = emit_load(b, emit_at(b, weights, row * WEIGHTS + 8 * place), long)
                    w = b.bitcast(broadcast(b, word, quads), I16V.ir)
                    for h in range(2):
                        out[2 * row + h] = add(b, out[2 * row + h], v[h], w)
            return _pack(b, tile, out)

        return tile(tile, *[types.int64] * 4), codegen

    return apply


@intrinsic
def word_sum(typingctx, at):
    """Sum of the BLOCK int16 at an address, not in overflow of 32 bits."""

    def codegen(ctx, b, sig, args):
        total = None
        for i in range(0, WEIGHTS, VECTOR):
            total = Dots(255).scaled(b, total, emit_load(b, emit_at(b, args[0], i), I16V.ir), constant(I16V, 1))
        return ops.reduce_add.op.pick(I32V)(b, signature(types.int32, I32V), total)

    return types.int32(types.int64), codegen


def word_starts(n_rows: int):
    """Function (address of i32[n_rows]) -> acc of word_products, each of whose sums of two pairs starts at that."""
    tile = Tile(I32V, n_rows * 2)

    @intrinsic
    def starts(typingctx, at):
        def codegen(ctx, b, sig, args):
            numbers = (emit_load(b, emit_at(b, args[0], 4 * row), I32V.ir.element) for row in range(n_rows))
            return _pack(b, tile, [x for n in numbers for x in [broadcast(b, n, I32V)] * 2])

        return tile(types.int64), codegen

    return starts


def folder(n_rows: int, paired: bool, mins: bool):
    """Function (acc, sums, row step, factors): sums[row] += acc[row] * factors[row], plus factors[n_rows + row] with
    `mins`; paired: a vector of sums is that of neighbours of two.
    """
    n = 2 if paired else PARTS_V
    tile, one = Tile(I32V, n_rows * n), signature(F32, F32, F32, F32)

    @intrinsic
    def fold(typingctx, acc, sums, row_step, factors):
        def codegen(ctx, b, sig, args):
            acc, sums, row_step, factors = args
            for i in range(n_rows):
                row, each = emit_offset(b, sums, row_step, i), [b.extract_value(acc, i * n + j) for j in range(n)]
                if paired:
                    each = [b.add(*(shuffle(b, *each, range(k, 2 * LANES, 2)) for k in range(2)))]
                factor, minimum = (
                    broadcast(b, emit_load(b, emit_at(b, factors, 4 * at), F32.ir.element), F32)
                    for at in (i, n_rows + i)
                )
                for j, x in enumerate(each):
                    at = emit_at(b, row, j * VECTOR)
                    old = emit_load(b, at, F32.ir)
                    old = b.fadd(old, minimum) if mins else old
                    emit_store(b, ops.fma.op.body(b, one, b.sitofp(x, F32.ir), factor, old), at)
            return ctx.get_dummy_value()

        return types.void(tile, types.int64, types.int64, types.int64), codegen

    return fold
