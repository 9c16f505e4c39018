"""Codes of panels: decode the 8 vectors of a 32-column block; weave rows of the file into them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from llvmlite import ir
from numba import types
from numba.core.typing.templates import signature

from ..quants import Quant
from ..simd import memory, ops
from ..simd.core import I32, TARGET, Tile, Vec, broadcast, constant, held, shuffle
from ..simd.dots import Dots
from ..simd.ops import I16V, I32V, LANES, U8, inline
from ..simd.shared import intrinsic
from ..simd.x86 import lookup_by_signs, shifted_up
from .layout import PanelLayout, panel_bits, word_columns
from .rows import row_functions

WORDS = Vec("u32", LANES)  # a U8 vector seen as 32-bit words, for shifts


def _moved(b, v, shift: int, mask: int):
    """(v >> shift) & mask per byte; negative shift moves left. Bits that cross bytes are masked away."""
    if shift:
        w = b.bitcast(v, WORDS.ir)
        w = b.lshr(w, constant(WORDS, shift)) if shift > 0 else b.shl(w, constant(WORDS, -shift))
        v = b.bitcast(w, U8.ir)
    return v if mask == 255 else b.and_(v, held(b, constant(U8, mask)))


@dataclass(frozen=True)
class Piece:
    """`bits` bits of a code, from its bit `low` on, in bits `at` and following of the bytes of a packed vector."""

    vector: int
    at: int
    bits: int
    low: int

    @property
    def mask(self) -> int:
        return 2**self.bits - 1


@functools.cache
def code_pieces(width: int) -> list[list[Piece]]:
    """Where the 8 codes of `width` bits lie in `width` vectors: as many whole codes in each as fit, the others in the
    bits that are left over there, so that few instructions take them out."""
    per = 8 // width
    left, done = 8 - per * width, per * width  # bits of each vector, and as many codes
    out = [[Piece(v // per, v % per * width, width, 0)] for v in range(done)]
    if left:
        runs = width // left  # that are one code's alone
        rest = iter([(v, done + i) for v in range(left * runs, width) for i in range(left)])
        for c in range(left):
            pieces = [Piece(c * runs + i, done, left, left * i) for i in range(runs)]
            for low in range(runs * left, width):
                v, at = next(rest)
                last = pieces[-1]
                if (last.vector, last.at + last.bits) == (v, at):
                    pieces[-1] = Piece(v, last.at, last.bits + 1, last.low)
                else:
                    pieces.append(Piece(v, at, 1, low))
            out.append(pieces)
    return out


def _nibbles(width: int) -> list[list[Piece]]:
    """The same for types whose levels are found by byte shuffles of 4 bits, joined by the others: the low 4 bits of two
    codes in each vector, then a vector of bit 4 of all 8 codes, and one of bit 5."""
    return [[Piece(c // 2, c % 2 * 4, 4, 0)] + [Piece(i, c, 1, i) for i in range(4, width)] for c in range(8)]


def by_nibbles(q: Quant) -> bool:
    return TARGET.name == "avx2" and q.levels is not None and 4 < panel_bits(q) < 8


def holds_levels(q: Quant) -> bool:
    return panel_bits(q) != q.bits


def pieces_of(q: Quant) -> list[list[Piece]]:
    return _nibbles(q.bits) if by_nibbles(q) else code_pieces(panel_bits(q))


def decode_block(q: Quant):
    """Function (super-block address, blocks in it, block) -> Tile(U8, 8): vector v = word v of W rows (layout.py),
    levels already looked up and shifted, as products read them (Dots.stored)."""
    layout = PanelLayout(q, LANES)
    shifts, size = _shift_reader(q, layout), layout.code_bytes
    tile, decoded = Tile(U8, 8), _decode_by_signs if by_nibbles(q) else _decode_pieces
    n_packed, shifted = panel_bits(q), q.shift and not holds_levels(q)

    @intrinsic
    def decode(typingctx, p, n, block):
        def codegen(ctx, b, sig, values):
            p, n, block = values
            at = b.add(p, b.mul(block, n.type(size)))
            packed = [memory.emit_load(b, b.add(at, n.type(i * 4 * LANES)), U8.ir) for i in range(n_packed)]
            codes = decoded(b, q, packed)
            if shifted:
                added = shifts(b, p, n, block)
                codes = [b.add(c, added[v * len(added) // 8]) for v, c in enumerate(codes)]
            out = ir.Constant(tile.ir, ir.Undefined)
            for v in range(8):
                out = b.insert_value(out, codes[v], v)
            return out

        return tile(types.int64, types.int64, types.int64), codegen

    return decode


def _decode_pieces(b, q, packed: list) -> list:
    """Levels of the 8 vectors, as products read them: a shift may be added to them."""
    codes = []
    for pieces in pieces_of(q):
        parts = [_moved(b, packed[x.vector], x.at - x.low, x.mask << x.low) for x in pieces]
        codes.append(functools.reduce(b.or_, parts))
    if q.levels is None or holds_levels(q):
        return [Dots(q.top).stored(b, c) for c in codes]
    values = _level_table(q)
    table = Vec("u8", values.type.count)
    values = held(b, values) if table.lanes == 16 else values  # larger ones are several registers
    look = ops.lookup.op.pick(table, U8)
    return [look(b, signature(U8, table, U8), values, c) for c in codes]


def _decode_by_signs(b, q, packed: list) -> list:
    """The same where codes lie as _nibbles says: their higher bits are moved to where byte shuffles are joined."""
    out = []
    for c in range(8):
        signs = [shifted_up(b, packed[i], 7 - c) for i in range(q.bits - 1, 3, -1)]
        out.append(lookup_by_signs(b, _level_table(q), _moved(b, packed[c // 2], c % 2 * 4, 15), signs))
    return out


def _level_table(q: Quant) -> ir.Constant:
    """Levels as products read them (Dots.stored), filled up with zeros."""
    table = Vec("u8", ops.table_size(q.levels))
    levels = [x ^ 128 if Dots(q.top).centred else x for x in q.levels]
    return constant(table, levels + [0] * (table.lanes - len(levels)))


def _shift_reader(q: Quant, layout: PanelLayout):
    """Function (builder, super-block, blocks in it, block) -> the shift in the columns of the rows whose shift bit is
    set: a U8 for all words, or one for those of either sub-block where words are not shared."""
    embedded, code_bytes, subs, delta = not q.shift_words, layout.code_bytes, layout.subs, 0x01010101 * q.shift
    word, shared = ir.VectorType(ir.IntType(8 if embedded else 16), LANES), TARGET.pairs16 and layout.subs == 2

    def read_pairs(b, p, n, block):
        at = b.add(b.add(p, b.mul(n, n.type(code_bytes))), b.mul(block, n.type(2 * LANES)))
        v, w = (memory.emit_load(b, x, word) for x in (at, b.add(at, n.type(LANES))))
        both = b.sext(shuffle(b, v, w, [i % 2 * LANES + i // 2 for i in range(2 * LANES)]), I16V.ir)
        mask = b.ashr(b.shl(both, constant(I16V, 15)), constant(I16V, 15))
        return [b.bitcast(b.and_(mask, constant(I16V, 0x0101 * q.shift)), U8.ir)]

    def read(b, p, n, block):
        first = b.mul(block, n.type(subs))
        if embedded:
            at = b.add(b.add(p, b.mul(n, n.type(code_bytes))), b.mul(first, n.type(LANES)))
        else:
            at = b.add(b.add(p, b.mul(n, n.type(layout.block_bytes))), n.type(layout.fixed_bytes - 2 * LANES))
        out = []
        for s in range(subs):
            bits = b.zext(memory.emit_load(b, b.add(at, n.type(s * LANES if embedded else 0)), word), I32V.ir)
            up = I32(31) if embedded else b.sub(I32(31 - s), b.trunc(first, I32))
            mask = b.ashr(b.shl(bits, broadcast(b, up, I32V)), constant(I32V, 31))
            columns = delta if not shared else delta & (0xFFFF0000 if s else 0xFFFF)
            out.append(b.and_(mask, constant(I32V, columns)))
        return [b.bitcast(x, U8.ir) for x in ([b.or_(*out)] if shared else out)]

    return read_pairs if shared and embedded else read


def rows_to_tile(q: Quant, decoded: bool = False):
    """Function (first row's block address, row stride, valid rows, sub-blocks before, tile address): one
    32-column block of W rows as u8[8][W][4] raw codes, or levels if `decoded`.

    Rows past `valid` get 0 repeated.
    """
    rows, scatter, lanes = row_functions(q), _scatter_words(), LANES
    raw = rows.levels if decoded else rows.raw
    if q.sub == 32:
        whole = raw
    else:

        @inline
        def whole(p, j0):
            return ops.join(raw(p, j0), raw(p, j0 + 1))

    @inline
    def decode(p, stride, valid, j0, tile):
        for r in range(lanes):
            if r < valid:
                scatter(tile + 4 * r, whole(p + r * stride, j0))
            else:
                for v in range(8):
                    ops.store_i32(tile + 4 * r + v * (4 * lanes), 0)

    return decode


def _scatter_words():
    """Function (address, u8 vector of 32 columns): word v goes to address + v * 4W."""
    words = Vec("u32", 8)

    @ops.op(lambda addr, v: types.void)
    def scatter(b, sig, addr, v):
        w = b.bitcast(shuffle(b, v, v, word_columns()), words.ir)
        for i in range(words.lanes):
            memory.emit_store(b, b.extract_element(w, I32(i)), b.add(addr, addr.type(i * 4 * LANES)))

    return scatter


def tile_to_codes(q: Quant):
    """Function (tile u8[8][W][4], super-block address, blocks in it, block): pack the code vectors of a block."""
    size = PanelLayout(q, LANES).code_bytes

    @intrinsic
    def pack(typingctx, tile, p, n, block):
        def codegen(ctx, b, sig, values):
            tile, p, n, block = values
            codes = [memory.emit_load(b, b.add(tile, n.type(v * 4 * LANES)), U8.ir) for v in range(8)]
            at = b.add(p, b.mul(block, n.type(size)))
            for i in range(panel_bits(q)):
                parts = [
                    _moved(b, code, x.low - x.at, x.mask << x.at)
                    for code, pieces in zip(codes, pieces_of(q), strict=True)
                    for x in pieces
                    if x.vector == i
                ]
                memory.emit_store(b, functools.reduce(b.or_, parts), b.add(at, n.type(i * 4 * LANES)))
            return ctx.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return pack
