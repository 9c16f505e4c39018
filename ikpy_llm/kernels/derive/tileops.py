"""Operations on register tiles that the matrix kernels share. The order of instructions is fixed here, so that few
values live at a time."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.typing.templates import signature

from ..simd import memory, ops
from ..simd.core import I32, TARGET, Tile, Vec, assembly, broadcast, constant, fence
from ..simd.dots import Dots
from ..simd.ops import F32, I8V, I16V, I32V, U8
from ..simd.shared import intrinsic
from .layout import MAGIC_BITS

U8_TILE8 = Tile(U8, 8)


def _quad(b, addr):
    """4 activation codes in every 32-bit lane."""
    return b.bitcast(broadcast(b, memory.emit_load(b, addr, I32), I32V), I8V.ir)


def dot_vectors(n: int, m: int, top: int):
    """Function (acc i32 tile of n, Tile(U8, 8), first, codes address) -> acc plus vectors first .. first+m-1
    times s8[m][n][4]; first is a literal, no weight is above top; the tile is as codes_to_store gives it."""
    dots, tile = Dots(top), Tile(I32V, n)

    @intrinsic(prefer_literal=True)
    def apply(typingctx, acc, weights, first, codes):
        if not isinstance(first, types.IntegerLiteral):
            return None

        def codegen(ctx, b, sig, values):
            acc, weights, _, codes = values
            out = [b.extract_value(acc, c) for c in range(n)]
            for v0 in range(0, m, dots.length):
                sums = [dots.open(b, x) for x in out]
                for v in range(v0, min(v0 + dots.length, m)):
                    w = dots.weights(b, b.extract_value(weights, first.literal_value + v))
                    for c in range(n):
                        sums[c] = dots.add(b, sums[c], w, _quad(b, memory.emit_at(b, codes, 4 * (v * n + c))))
                out = [dots.close(b, x, s) for x, s in zip(out, sums, strict=True)]
            return _pack(b, tile, out)

        return tile(tile, U8_TILE8, first, types.int64), codegen

    return apply


def renewed(b, address):
    """The address, which LLVM no longer knows to be the same: what was loaded there is loaded again rather than
    spilled."""
    return assembly(b, address.type, "", "=r,0", address)


@intrinsic
def plain_index(typingctx, i):
    """The number i, of which LLVM knows no more where registers are few: addresses are then made of it by the
    instructions that use them, rather than kept in registers of their own."""

    def codegen(ctx, b, sig, values):
        return renewed(b, values[0]) if TARGET.pairs16 else values[0]

    return types.int64(types.int64), codegen


def _pack(b, tile: Tile, vectors):
    out = ir.Constant(tile.ir, ir.Undefined)
    for i, v in enumerate(vectors):
        out = b.insert_value(out, v, i)
    return out


@intrinsic(prefer_literal=True)
def tile_splat_pair(typingctx, n, addr):
    """tile_splat_pair(n, address) -> n vectors: the two int16 at address + 4 * i repeated."""
    if not isinstance(n, types.IntegerLiteral):
        return None
    tile = Tile(I16V, n.literal_value)

    def codegen(ctx, b, sig, values):
        words = [memory.emit_load(b, memory.emit_at(b, values[1], 4 * i), I32) for i in range(tile.n)]
        return _pack(b, tile, [b.bitcast(broadcast(b, w, I32V), I16V.ir) for w in words])

    return tile(n, types.int64), codegen


def codes_to_store(top: int):
    """Function (Tile(U8, 8) of codes up to top) -> the tile as dot_panels reads it."""
    dots = Dots(top)

    @intrinsic
    def convert(typingctx, tile):
        def codegen(ctx, b, sig, values):
            return _pack(b, U8_TILE8, [dots.stored(b, b.extract_value(values[0], v)) for v in range(8)])

        return U8_TILE8(U8_TILE8), codegen

    return convert


@intrinsic
def tile_of_one(typingctx, v):
    """The tile that holds v."""
    tile = Tile(v, 1)
    return tile(v), lambda ctx, b, sig, values: _pack(b, tile, values)


@intrinsic
def tile_of_two(typingctx, v, w):
    """The tile that holds v and w."""
    tile = Tile(v, 2)
    return tile(v, w), lambda ctx, b, sig, values: _pack(b, tile, values)


def over_panels(n_panels: int, t: int, vec: Vec):
    """Function (tile of t vectors) -> the tile repeated for each panel."""
    tile = Tile(vec, n_panels * t)

    @intrinsic
    def repeat(typingctx, x):
        def codegen(ctx, b, sig, values):
            one = [b.extract_value(values[0], c) for c in range(t)]
            return _pack(b, tile, one * n_panels)

        return tile(Tile(vec, t)), codegen

    return repeat


def fma_panels(n_panels: int, t: int):
    """Function (x tile [n_panels][t], address of an F32 per panel, panel stride, acc) -> acc + x * vector of the
    panel."""
    tile, one = Tile(F32, n_panels * t), signature(F32, F32, F32, F32)

    @intrinsic
    def apply(typingctx, x, at, stride, acc):
        def codegen(ctx, b, sig, values):
            x, at, stride, acc = values
            out = []
            for p in range(n_panels):
                s = memory.emit_load(b, memory.emit_offset(b, at, stride, p), F32.ir)
                for c in range(t):
                    i = p * t + c
                    out.append(ops.fma.op.body(b, one, b.extract_value(x, i), s, b.extract_value(acc, i)))
            return _pack(b, tile, out)

        return tile(tile, types.int64, types.int64, tile), codegen

    return apply


def mul_panels(n_panels: int, t: int):
    """Function (x tile [n_panels][t], address of an F32 per panel, panel stride) -> x * vector of the panel."""
    tile = Tile(F32, n_panels * t)

    @intrinsic
    def apply(typingctx, x, at, stride):
        def codegen(ctx, b, sig, values):
            x, at, stride = values
            vectors = [memory.emit_load(b, memory.emit_offset(b, at, stride, p), F32.ir) for p in range(n_panels)]
            return _pack(b, tile, [b.fmul(b.extract_value(x, i), vectors[i // t]) for i in range(tile.n)])

        return tile(tile, types.int64, types.int64), codegen

    return apply


def _add_products(b, dots: Dots, sums: list, m: int, weights: list, codes):
    """sums [panel][t] += m code vectors of each panel, at the addresses `weights`, times s8[m][t][4] at `codes`."""
    for v0 in range(0, m, dots.length):
        partial = [dots.open(b, x) for x in sums]
        _add_vectors(b, dots, partial, range(v0, min(v0 + dots.length, m)), weights, codes)
        sums[:] = [dots.close(b, x, s) for x, s in zip(sums, partial, strict=True)]


def _add_vectors(b, dots: Dots, partial: list, vectors: range, weights: list, codes):
    """partial sums [panel][t] += these code vectors."""
    t = len(partial) // len(weights)
    for v in vectors:
        w = [dots.weights(b, memory.emit_load(b, memory.emit_at(b, at, v * U8.lanes), U8.ir)) for at in weights]
        for c in range(t):
            x = _quad(b, memory.emit_at(b, codes, 4 * (v * t + c)))
            for p, of_panel in enumerate(w):
                partial[p * t + c] = dots.add(b, partial[p * t + c], of_panel, x)


def dot_panels(n_panels: int, t: int, m: int, top: int):
    """Function (acc i32 tile [n_panels][t], weights address, panel stride, codes address) -> acc plus m code
    vectors u8[m][W][4] of each panel (as codes_to_store gives them) times s8[m][t][4]; no weight is above top."""
    dots, tile = Dots(top), Tile(I32V, n_panels * t)
    at_once = 1 if dots.centred else n_panels

    @intrinsic
    def apply(typingctx, acc, weights, stride, codes):
        def codegen(ctx, b, sig, values):
            acc, weights, stride, codes = values
            out = [b.extract_value(acc, i) for i in range(tile.n)]
            for first in range(0, n_panels, at_once):
                codes = renewed(b, codes) if first else codes
                panels = [memory.emit_offset(b, weights, stride, p) for p in range(first, first + at_once)]
                sums = out[first * t : (first + at_once) * t]
                _add_products(b, dots, sums, m, panels, codes)
                out[first * t : (first + at_once) * t] = sums
            return _pack(b, tile, out)

        return tile(tile, types.int64, types.int64, types.int64), codegen

    return apply


def scaled_dots(n_panels: int, t: int, m: int, top: int, zero: int):
    """Function (acc f32 tile [n_panels][t], codes u8[m][W][4] of a panel as codes_to_store gives them, panel stride,
    start values of t columns, their codes s8[m][t][4], their scales, offset from there to -MAGIC times them, row scales
    f32[W] of a panel) -> acc + products * both scales. No weight is above top.

    Where registers are few, as with two scales per 32 columns, LLVM must not load early nor keep what can be loaded
    again.
    """
    dots, tile, one = Dots(top), Tile(F32, n_panels * t), signature(F32, F32, F32, F32)
    at_once, fma = 1 if dots.centred else n_panels, ops.fma.op.body  # centred weights take twice the registers
    tight, fences = TARGET.pairs16 or m < 8, m < 8 and not TARGET.pairs16

    @intrinsic
    def apply(typingctx, acc, weights, stride, start, codes, scales, offset, row_scales):
        def codegen(ctx, b, sig, values):
            acc, weights, stride, start, codes, scales, offset, row_scales = values
            out = [b.extract_value(acc, i) for i in range(tile.n)]
            for first in range(0, n_panels, at_once):
                if tight:
                    start, codes = renewed(b, start), renewed(b, codes)
                panels = range(first, first + at_once)
                sums = _starts(b, zero, t, start) * at_once
                at = [memory.emit_offset(b, weights, stride, p) for p in panels]
                _add_products(b, dots, sums, m, at, codes)
                if tight:
                    scales = renewed(b, scales)
                if fences:
                    fence(b)
                rows = [memory.emit_load(b, memory.emit_offset(b, row_scales, stride, p), F32.ir) for p in panels]
                for c in range(t):
                    d, minus = (
                        _float(b, memory.emit_at(b, scales, 4 * c)),
                        _float(b, memory.emit_at(b, b.add(scales, offset), 4 * c)),
                    )
                    for p, row in zip(panels, rows, strict=True):
                        x = fma(b, one, b.bitcast(sums[(p - first) * t + c], F32.ir), d, minus)
                        out[p * t + c] = fma(b, one, x, row, out[p * t + c])
            return _pack(b, tile, out)

        words = [types.int64] * 7
        return tile(tile, *words), codegen

    return apply


def _starts(b, zero: int, n: int, at) -> list:
    """What the accumulators of n columns start at."""
    if zero == 0:
        return [constant(I32V, MAGIC_BITS)] * n
    return [broadcast(b, memory.emit_load(b, memory.emit_at(b, at, 4 * i), I32), I32V) for i in range(n)]


def start_values(zero: int, n: int):
    """Function (address) -> i32 tile of n: what the accumulators of n columns start at, see layout.py."""
    tile = Tile(I32V, n)

    @intrinsic
    def starts(typingctx, at):
        def codegen(ctx, b, sig, values):
            return _pack(b, tile, _starts(b, zero, n, values[0]))

        return tile(types.int64), codegen

    return starts


def _float(b, address):
    """The float at an address in every lane."""
    return broadcast(b, memory.emit_load(b, address, F32.ir.element), F32)


def dot2_panels(n_panels: int, t: int):
    """Function (acc i32 tile, address of an I16V per panel, panel stride, address of t int16 pairs) -> acc + pair
    products."""
    tile = Tile(I32V, n_panels * t)
    body, one = ops.dot2.op.pick(I32V, I16V, I16V), signature(I32V, I32V, I16V, I16V)

    @intrinsic
    def apply(typingctx, acc, at, stride, pairs):
        def codegen(ctx, b, sig, values):
            acc, at, stride, pairs = values
            out = [b.extract_value(acc, i) for i in range(tile.n)]
            mins = [memory.emit_load(b, memory.emit_offset(b, at, stride, p), I16V.ir) for p in range(n_panels)]
            for c in range(t):
                x = b.bitcast(broadcast(b, memory.emit_load(b, memory.emit_at(b, pairs, 4 * c), I32), I32V), I16V.ir)
                for p in range(n_panels):
                    out[p * t + c] = body(b, one, out[p * t + c], mins[p], x)
            return _pack(b, tile, out)

        return tile(tile, types.int64, types.int64, types.int64), codegen

    return apply


def fma_splat_panels(n_panels: int, t: int):
    """Function (addresses of t floats and an F32 per panel, panel stride, acc) -> acc + float[c] * vector[panel]."""
    tile, one = Tile(F32, n_panels * t), signature(F32, F32, F32, F32)

    @intrinsic
    def apply(typingctx, floats, at, stride, acc):
        def codegen(ctx, b, sig, values):
            floats, at, stride, acc = values
            vectors = [memory.emit_load(b, memory.emit_offset(b, at, stride, p), F32.ir) for p in range(n_panels)]
            out = [None] * tile.n
            for c in range(t):
                x = _float(b, memory.emit_at(b, floats, 4 * c))
                for p in range(n_panels):
                    out[p * t + c] = ops.fma.op.body(b, one, x, vectors[p], b.extract_value(acc, p * t + c))
            return _pack(b, tile, out)

        return tile(types.int64, types.int64, types.int64, tile), codegen

    return apply


def panel_of(n_panels: int, t: int, panel: int):
    """Function (tile [n_panels][t]) -> the t vectors of one panel."""

    @intrinsic
    def part(typingctx, x):
        def codegen(ctx, b, sig, values):
            return _pack(b, Tile(F32, t), [b.extract_value(values[0], panel * t + c) for c in range(t)])

        return Tile(F32, t)(Tile(F32, n_panels * t)), codegen

    return part
