"""Sums over quantized values by integer products with the weights of a softmax.

Weights are in units of the block's largest. Per row and 32 columns, weight * scale of the position is rounded to 15 or
16 bits of what the largest weight and the largest scale in the block would give, and multiplied with codes as s8, sums
of a block in 32 bits. The upper and the lower byte of 16 bits have products of their own: 256 times the sum of the
upper ones is where that of the lower ones starts. Where products take only signed bytes (NEON without i8mm) they are a
byte and a byte of the rest, and int16 on AVX2 without a dot-product instruction. (8 bits alone leave nothing of the
weights beside one that is far above them, as the first token's often is.) So the error of a block's sum is at most 64 *
2^-16 of the largest weight times the largest value.

The largest scale is that of the block where a row sees all of it, else of the positions the row sees. A block of
positions is decoded once for all rows that share it; codes of 8 bits, and some of 4, are read where they lie. Keys:
attention/int_scores.py.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..derive.layout import MAGIC
from ..derive.tileops import plain_index
from ..kv.decode import emit_codes, scales_reader
from ..kv.store import PARTS, QUADS, SIZE
from ..kv.types import COLUMNS, KVType
from ..simd import (
    F32,
    I16V,
    I32V,
    LANES,
    U8,
    U32V,
    Vec,
    absolute,
    bits,
    fma,
    inline,
    iota,
    load,
    load_f32,
    load_i32,
    load_i64,
    maximum,
    ops,
    prefetch_l2,
    reduce_add,
    reduce_max,
    select,
    splat,
    store,
    store_f32,
    store_i32,
    tile_zeros,
    zeros,
)
from ..simd.core import broadcast, constant, shuffle
from ..simd.memory import emit_at, emit_load, emit_store
from .dots import (
    PARTS_V,
    RUN,
    SIGNED,
    VECTOR,
    WEIGHTS,
    WORDS,
    byte_products,
    folder,
    word_products,
    word_starts,
    word_sum,
)
from .layout import BLOCK, CACHE_LINE

ZERO = np.float32(0)
ROUND = np.float32(MAGIC)  # x + ROUND has round(x) in its low bits
TINY = np.float32(1e-30)  # weights and scales below count as zeros
SPREAD = 64  # bytes of a number that stands alone
# what is left, from -1/2 to 1/2, as a signed byte; with int16 weights, what codes in upper halves count more
LOW = np.float32(16 if WORDS else 254)
# the largest weight, as an integer; unsigned weights have 16 bits, of which each byte is multiplied by itself
TOP = np.float32(32767 if WORDS else 127 if SIGNED else 65535)
AT_NORM, AT_MINS, AT_UNIT = 4 * BLOCK, 8 * BLOCK, 12 * BLOCK
GROUP_BYTES = 12 * BLOCK + SPREAD


def values_bytes(v_dim: int) -> int:
    """Bytes of a decoded block of values: for each 32 columns f32 [position] scales (their sizes where weights have no
    sign), the same as _shares gives them, minimums plus what middle codes add to them, and that unit; then
    codes s8 [panel][tile][8][4 W], those less the middle one, unless they are read where they lie.
    """
    return v_dim // COLUMNS * GROUP_BYTES + BLOCK * v_dim


def _middle(kv: KVType) -> int:
    return 1 << kv.bits - 1


def _halves(kv: KVType, latent: bool) -> bool:
    """Whether the products take 4-bit codes, two of which share a byte."""
    return WORDS and kv.bits == 4 and not kv.levels and not latent


def _in_place(kv: KVType, latent: bool) -> bool:
    """Whether the products take codes from the cache."""
    return (kv.bits == 8 and not latent) or _halves(kv, latent)


def _turned(b, codes: list) -> list:
    """Codes of a tile of keys, vectors of 4 columns of W positions, as those of values."""
    out = []
    places = [
        (c // 4 * SIZE + c % 4 + 4 * (4 * quad + k)) for quad in range(QUADS) for c in range(LANES) for k in range(4)
    ]
    for part in range(PARTS):
        wide = codes[part * QUADS : (part + 1) * QUADS]
        while len(wide) > 1:
            wide = [shuffle(b, x, y, range(2 * x.type.count)) for x, y in zip(wide[::2], wide[1::2], strict=True)]
        out += [shuffle(b, wide[0], wide[0], places[q * SIZE : (q + 1) * SIZE]) for q in range(QUADS)]
    return out


def _signed_writer(kv: KVType, turned: bool):
    """Function (tile, target): code - zero of a tile of values as s8, with the sign of the position's scale where
    weights have none; with minimums (and scales not below 0) code - the middle one. turned: the tile lies as one of
    keys.
    """
    whole, mins = kv.zero == 128, kv.mins  # levels, and 8-bit codes of keys
    zero, at_scales = _middle(kv) if mins else 0 if whole else kv.zero, kv.bits * SIZE
    flips_signs = not (WORDS or mins or kv.bits == 8)
    short, byte, words = Vec("i16", LANES), Vec("i8", LANES), Vec("i32", QUADS)

    def patterns(b, x):
        """The bytes of 4 positions, repeated, for each quad."""
        x = b.bitcast(x, words.ir)
        each = [b.extract_element(x, ir.Constant(ir.IntType(32), i)) for i in range(QUADS)]
        return [b.bitcast(broadcast(b, w, I32V), U8.ir) for w in each]

    @intrinsic
    def write(typingctx, tile, target):
        def codegen(ctx, b, sig, args):
            codes = emit_codes(b, kv, args[0], 128 if whole else 0)
            codes = _turned(b, codes) if turned else codes
            if flips_signs:
                scales = emit_load(b, emit_at(b, args[0], at_scales), short.ir)
                below = b.trunc(b.ashr(scales, constant(short, 15)), byte.ir)
                flips = patterns(b, below)
                offsets = patterns(b, b.sub(b.and_(below, constant(byte, 2 * zero + 1)), constant(byte, zero)))
                for v, x in enumerate(codes):  # -(x - zero) = ~x + zero + 1
                    codes[v] = b.add(b.xor(x, flips[v % QUADS]), offsets[v % QUADS])
            elif zero:
                codes = [b.sub(x, constant(U8, zero)) for x in codes]
            for v, x in enumerate(codes):
                emit_store(b, x, emit_at(b, args[1], v * SIZE))
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return write


@intrinsic
def _low_words(typingctx, x, y):
    """The low halves of the lanes of two vectors: of each 16 bytes 4 of the one, then 4 of the other (vpackusdw)."""
    order = [2 * (lane + i) + part for lane in range(0, LANES, 4) for part in (0, 2 * LANES) for i in range(4)]

    def codegen(ctx, b, sig, values):
        return shuffle(b, *(b.bitcast(v, I16V.ir) for v in values), order)

    return I16V(U32V, U32V), codegen


@inline
def _largest(scales):
    """Largest size of a block's f32."""
    most = zeros(F32)
    for i in range(0, 4 * BLOCK, VECTOR):
        most = maximum(absolute(load(F32, scales + i)), most)
    return reduce_max(most)


@inline
def _shares(scales, norm):
    """f32 [position] in units of which the largest size of them has TOP. Returns the unit."""
    top = _largest(scales)
    up = TOP / top if top > TINY else ZERO
    for i in range(0, 4 * BLOCK, VECTOR):
        store(norm + i, load(F32, scales + i) * up)
    return top / TOP


def values_reader(kv: KVType, v_dim: int, latent: int = 0):
    """Function (cache, target, ahead): a block of values as above. latent: columns of a row of latents, which lie as
    keys; the values are the first.
    """
    columns = latent or v_dim
    read_scales, write_codes = scales_reader(kv, columns), _signed_writer(kv, latent > 0)
    panel_bytes, tile_bytes, groups = LANES * kv.row_bytes(columns), LANES * kv.tile_row, v_dim // COLUMNS
    at_codes, packed = groups * GROUP_BYTES, not _in_place(kv, latent > 0)
    mins, middle = kv.mins, np.float32(_middle(kv))

    def read(cache, target, ahead):
        for p in range(BLOCK // LANES):
            panel = cache + p * panel_bytes
            if ahead != 0:
                for i in range(0, panel_bytes, 64):
                    prefetch_l2(panel + ahead + i)
            for g in range(groups):
                at = target + g * GROUP_BYTES + p * VECTOR
                read_scales(panel, g, at, at + AT_MINS)
                if mins:
                    store(at + AT_MINS, fma(load(F32, at), splat(F32, middle), load(F32, at + AT_MINS)))
                if not WORDS:
                    store(at, absolute(load(F32, at)))
                if packed:
                    write_codes(panel + g * tile_bytes, target + at_codes + (p * groups + g) * 8 * SIZE)
        for g in range(groups):
            at = target + g * GROUP_BYTES
            store_f32(at + AT_UNIT, _shares(at, at + AT_NORM))

    return inline(read)


def _bytes_of(k: int):
    """Function of four I32V -> U8: byte k of each lane, in order."""
    words, lanes = Vec("i16", 2 * LANES), range(0, 4 * LANES, 2)

    @intrinsic
    def pick(typingctx, x, y, z, w):
        def codegen(ctx, b, sig, values):
            halves = [b.bitcast(v, words.ir) for v in values]
            pairs = [shuffle(b, *halves[i : i + 2], lanes) for i in (0, 2)]
            return shuffle(b, *(b.bitcast(v, U8.ir) for v in pairs), [2 * i + k for i in range(4 * LANES)])

        return U8(I32V, I32V, I32V, I32V), codegen

    return pick


_low_bytes, _high_bytes = _bytes_of(0), _bytes_of(1)


@inline
def _shifted(w, d):
    """weight * scale, rounded, above ROUND."""
    return fma(w, d, splat(F32, ROUND))


@inline
def _rest(w, d):
    """What _shifted leaves, in units of 1 / LOW, above ROUND."""
    return (w * d - (_shifted(w, d) - ROUND)) * LOW + ROUND


def _rounder(weight):
    """Function (weights, row, norm, out): weight * scale of a row as integers. weight: function (weights, row, i) that
    gives vector i of a row's weights.
    """

    @inline
    def words(weights, row, norm, out):
        """int16, in the order of _low_words."""
        for i in range(0, BLOCK // LANES, 2):
            d = norm + i * VECTOR
            x = _shifted(weight(weights, row, i), load(F32, d))
            y = _shifted(weight(weights, row, i + 1), load(F32, d + VECTOR))
            store(out + 2 * i * LANES, _low_words(bits(U32V, x), bits(U32V, y)))

    @inline
    def four(part, weights, row, norm, i):
        d = norm + i * VECTOR
        x, y = part(weight(weights, row, i), load(F32, d)), part(weight(weights, row, i + 1), load(F32, d + VECTOR))
        z = part(weight(weights, row, i + 2), load(F32, d + 2 * VECTOR))
        w = part(weight(weights, row, i + 3), load(F32, d + 3 * VECTOR))
        return bits(I32V, x), bits(I32V, y), bits(I32V, z), bits(I32V, w)

    @inline
    def signed_bytes(weights, row, norm, out):
        """A byte, and BLOCK bytes on the rest of it in units of 1 / LOW."""
        for i in range(0, BLOCK // LANES, 4):
            store(out + i * LANES, _low_bytes(*four(_shifted, weights, row, norm, i)))
            store(out + BLOCK + i * LANES, _low_bytes(*four(_rest, weights, row, norm, i)))

    @inline
    def two_bytes(weights, row, norm, out):
        """The upper byte of 16 bits, and BLOCK bytes on the lower one."""
        for i in range(0, BLOCK // LANES, 4):
            x, y, z, w = four(_shifted, weights, row, norm, i)
            store(out + i * LANES, _high_bytes(x, y, z, w))
            store(out + BLOCK + i * LANES, _low_bytes(x, y, z, w))

    return words if WORDS else signed_bytes if SIGNED else two_bytes


def weigher(kv: KVType, n_rows: int, v_dim: int, wide: int, latent: bool = False):
    """Function (weights, shares, n_used, cache, block, n, seen, sums, rest, ahead): the sums of a tile follow the
    weights of a block's first n positions, the largest of which is 1, times its row's share (f32, a vector apart).

    cache: where values_reader read `block`. seen: 0 where every row sees all positions, else the address of i32 (first,
    last position in the block) of each row. weights and sums as attention/tile.py lays them out, `wide` vectors side by
    side. What is needed next lies `ahead` bytes on. latent: values_reader turned them.
    """
    groups, mins, packed = v_dim // COLUMNS, kv.mins, not _in_place(kv, latent)
    halves = _halves(kv, latent)
    products = word_products(n_rows, halves) if WORDS else byte_products(n_rows)
    fold, fold_low = folder(n_rows, WORDS, mins), folder(n_rows, WORDS, False)
    n_vectors, n_runs, n_sums = v_dim // LANES // wide * wide, BLOCK // (4 * RUN), n_rows * (2 if WORDS else PARTS_V)
    n_passes = 1 if WORDS else 2
    rest_step = (v_dim // LANES - n_vectors) * VECTOR
    near = -(-BLOCK * kv.row_bytes(v_dim) // (CACHE_LINE * n_runs * n_passes * (v_dim // LANES // PARTS_V)))
    near = 0 if latent else near  # lines asked for in a run; of latents scores have
    at_codes, step, tile_step = groups * GROUP_BYTES, LANES * kv.row_bytes(v_dim), LANES * kv.tile_row
    if packed:
        step, tile_step = groups * 8 * SIZE, 8 * SIZE
    masks_of, rounded_of = ops.stack(2 * VECTOR), ops.stack(WEIGHTS * n_rows)
    # where codes are taken as they are, sums start at what the middle one would give, two of them for a column
    centres_of, half_middle, starts = ops.stack(8 * n_rows), _middle(kv) // 2, word_starts(n_rows)
    factors_of, low_of, own_of = ops.stack(8 * n_rows), ops.stack(8 * n_rows), ops.stack(GROUP_BYTES)

    @inline
    def weight(weights, row, i):
        return load(F32, weights + (i // wide * n_rows * wide + row * wide + i % wide) * VECTOR)

    round_row = _rounder(weight)

    @inline
    def own_scales(block, own, first, last):
        """Scales of a group as values_reader leaves them, of the positions that a row sees."""
        for i in range(BLOCK // LANES):
            positions, at = iota(I32V) + i * LANES, i * VECTOR
            d = select(positions >= first, load(F32, block + at), zeros(F32))
            store(own + at, select(positions <= last, d, zeros(F32)))
            if mins:
                m = select(positions >= first, load(F32, block + AT_MINS + at), zeros(F32))
                store(own + AT_MINS + at, select(positions <= last, m, zeros(F32)))
        store_f32(own + AT_UNIT, _shares(own, own + AT_NORM))

    @inline
    def minimums(weights, row, source):
        """Sum of weight * minimum."""
        total = zeros(F32)
        for i in range(BLOCK // LANES):
            total = fma(weight(weights, row, i), load(F32, source + AT_MINS + i * VECTOR), total)
        return reduce_add(total)

    @inline
    def add(acc, codes, rounded, n, masks, later):
        codes, later = plain_index(codes), plain_index(later)
        for q in range((n + 4 * RUN - 1) // (4 * RUN)):
            for i in range(near):  # in small parts: a core has few reads under way at a time
                prefetch_l2(later + (q * near + i) * CACHE_LINE)
            acc = products(acc, codes + q * (RUN // QUADS) * step, step, rounded + q * (8 if WORDS else 4) * RUN, masks)
        return acc

    def weigh(weights, shares, n_used, cache, block, n, seen, sums, rest, ahead):
        rounded, factors, low_factors, own = rounded_of(), factors_of(), low_of(), own_of()
        masks, centres = masks_of(), centres_of()
        for i in range(2 if halves else 0):
            store(masks + VECTOR * i, splat(I16V, 15 << 4 * i))
        for g in range(groups):
            for row in range(n_used):
                source = block + g * GROUP_BYTES
                if seen != 0:
                    at = seen + 8 * row
                    if row == 0 or load_i64(at) != load_i64(at - 8):  # heads of a token see the same
                        own_scales(source, own, load_i32(at), load_i32(at + 4))
                    source = own
                source = plain_index(source)
                round_row(weights, row, source + AT_NORM, rounded + row * WEIGHTS)
                if halves:
                    centre = -half_middle * word_sum(rounded + row * WEIGHTS)
                    store_i32(centres + 4 * row, centre)
                    store_i32(centres + 4 * (n_rows + row), 16 * centre)
                share = load_f32(shares + row * VECTOR)
                factor = load_f32(source + AT_UNIT) * share
                store_f32(factors + 4 * row, factor)
                store_f32(low_factors + 4 * row, factor / LOW)
                if mins:
                    minimum = minimums(weights, row, source) * share
                    store_f32(factors + 4 * (n_rows + row), minimum)
                    store_f32(low_factors + 4 * (n_rows + row), minimum)
            for part in range(0, PARTS, PARTS_V):
                vector, at = g * PARTS + part, part * QUADS
                to, row_step = sums + (vector // wide * n_rows * wide + vector % wide) * VECTOR, wide * VECTOR
                if vector >= n_vectors:
                    to, row_step = rest + (vector - n_vectors) * VECTOR, rest_step
                later = cache + ahead + vector // PARTS_V * (near * n_runs * n_passes * CACHE_LINE)
                high = at // 4 if halves else 0
                codes = (block + at_codes if packed else cache) + g * tile_step + (at - 4 * high) * SIZE
                near_masks, near_centres = masks + VECTOR * high, centres + 4 * n_rows * high
                acc = starts(near_centres) if halves else tile_zeros(I32V, n_sums)
                acc = add(acc, codes, rounded, n, near_masks, later)
                later += near * n_runs * CACHE_LINE
                if SIGNED:
                    fold(acc, to, row_step, factors)
                    acc = add(tile_zeros(I32V, n_sums), codes, rounded + BLOCK, n, masks, later)
                    fold_low(acc, to, row_step, low_factors)
                elif WORDS:
                    fold(acc, to, row_step, factors if high == 0 else low_factors)
                else:
                    fold(add(acc << 8, codes, rounded + BLOCK, n, masks, later), to, row_step, factors)

    return inline(weigh)
