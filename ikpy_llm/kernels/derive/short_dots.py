"""Products of a block of 32 columns that add up in 16 bits before scales multiply them (layout.chunk): tiles of the
matrix kernels on AVX2 without a dot-product instruction."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.typing.templates import signature

from ..simd import memory, ops
from ..simd.core import I32, Tile, broadcast, constant, held
from ..simd.dots import Dots
from ..simd.ops import F32, I16V, I32V, U8
from ..simd.shared import intrinsic
from .tileops import U8_TILE8, _add_vectors, _float, _pack, _quad, renewed


def block_dots(n_panels: int, t: int, chunk: int, top: int, zero: int, float_subs: int = 0):
    """Function (acc f32 tile [n_panels][t], codes u8[8][W][4] of a panel as codes_to_store gives them, panel stride,
    start pairs i16[32/chunk][t][2], codes s8[8][t][4] of the columns, their scales, row scales of a panel) -> acc +
    column scale * sum over sub-blocks of (row scale * products). See layout.chunk.

    Row scales are integers i16[W][2], multiplied with pairs of 16 bits, or floats f32[float_subs][W].
    """
    add, tile, one = _block_adder(n_panels, t, chunk, top, zero), Tile(F32, n_panels * t), signature(F32, F32, F32, F32)
    fma = ops.fma.op.body

    @intrinsic
    def apply(typingctx, acc, weights, stride, start, codes, scales, row_scales):
        def codegen(ctx, b, sig, values):
            acc, weights, stride, start, codes, scales, row_scales = values

            def scales_of(panel, sub, vec):
                at = memory.emit_at(b, memory.emit_offset(b, row_scales, stride, panel), sub * U8.lanes)
                return memory.emit_load(b, at, vec.ir)

            def pairs(panel):
                if not float_subs:
                    return [scales_of(panel, 0, I16V)]
                return [held(b, x) for x in sub_block_pairs(float_subs)]

            def fold(panel, d, sums, acc):
                if not float_subs:
                    return fma(b, one, b.sitofp(sums[0], F32.ir), d, acc)
                for s, x in enumerate(sums):
                    acc = fma(b, one, b.fmul(b.sitofp(x, F32.ir), d), scales_of(panel, s, F32), acc)
                return acc

            return _pack(b, tile, add(b, acc, weights, stride, start, codes, scales, pairs, fold))

        return tile(tile, *[types.int64] * 6), codegen

    return apply


def sub_block_pairs(subs: int) -> list[ir.Constant]:
    """What pairs of 16 bits are multiplied with to add up those of each sub-block."""
    return [constant(I16V, [int(subs == 1 or i % 2 == s) for i in range(I16V.lanes)]) for s in range(subs)]


def _block_adder(n_panels: int, t: int, chunk: int, top: int, zero: int):
    """The loops of block_dots: pairs(panel) -> multipliers of 16-bit sums, fold(panel, column scale, i32 sums by
    multiplier, acc) -> acc."""
    dots = Dots(top, chunk // 4)
    at_once = 1 if dots.centred else n_panels

    def add(b, acc, weights, stride, start, codes, scales, pairs, fold):
        out = [b.extract_value(acc, i) for i in range(n_panels * t)]
        for first in range(0, n_panels, at_once):
            start, codes = renewed(b, start), renewed(b, codes)
            panels = range(first, first + at_once)
            at = [memory.emit_offset(b, weights, stride, p) for p in panels]
            products = _tile_products(b, dots, at, codes)
            sums = _scaled_sums(b, dots, zero, t, products, start, [pairs(p) for p in panels])
            scales = renewed(b, scales)
            for c in range(t):
                d = _float(b, memory.emit_at(b, scales, 4 * c))
                for p in panels:
                    out[p * t + c] = fold(p, d, sums[(p - first) * t + c], out[p * t + c])
        return out

    return add


def block_sum(t: int, n: int, chunk: int, top: int, zero: int):
    """The same for one panel whose codes are in registers: function (Tile(U8, 8), start pairs, codes, multipliers
    Tile(I16V, n)) -> i32 tile [n][t]: sums of multiplier * pairs of products."""
    dots, tile, multipliers = Dots(top, chunk // 4), Tile(I32V, n * t), Tile(I16V, n)

    @intrinsic
    def apply(typingctx, weights, start, codes, pairs):
        def codegen(ctx, b, sig, values):
            weights, start, codes, pairs = values
            codes = renewed(b, codes) if dots.centred else codes

            def products(partial, vectors):
                for v in vectors:
                    w = dots.weights(b, b.extract_value(weights, v))
                    for c in range(t):
                        partial[c] = dots.add(b, partial[c], w, _quad(b, memory.emit_at(b, codes, 4 * (v * t + c))))

            pairs = [b.extract_value(pairs, i) for i in range(n)]
            sums = _scaled_sums(b, dots, zero, t, products, start, [pairs])
            return _pack(b, tile, [sums[c][i] for i in range(n) for c in range(t)])

        return tile(U8_TILE8, types.int64, types.int64, multipliers), codegen

    return apply


def _tile_products(b, dots: Dots, weights: list, codes):
    def products(partial, vectors):
        _add_vectors(b, dots, partial, vectors, weights, codes)

    return products


def _scaled_sums(b, dots: Dots, zero: int, t: int, products, start, multipliers: list) -> list:
    """For each panel and column i32 sums of a block, one for each of the panel's multipliers: of multiplier * 16-bit
    pairs, which begin at those at `start`; products(partial sums, code vectors) adds to them."""
    sums = [[None] * len(of_panel) for of_panel in multipliers for _ in range(t)]
    for v0 in range(0, 8, dots.length):
        partial = [None] * t
        if zero:
            words = [
                memory.emit_load(b, memory.emit_at(b, start, 4 * (v0 // dots.length * t + c)), I32) for c in range(t)
            ]
            partial = [b.bitcast(broadcast(b, w, I32V), I16V.ir) for w in words]
        partial = partial * len(multipliers)
        products(partial, range(v0, v0 + dots.length))
        for i, found in enumerate(partial):
            for k, pairs in enumerate(multipliers[i // t]):
                sums[i][k] = dots.scaled(b, sums[i][k], found, pairs)
    return sums
