"""Attention's inner loops: a tile of rows (tokens and heads that share keys and values) over a block of positions.

Scores of a row are sums over d in order, outputs sums over positions in order. Weights are powers of two: q is scaled
by log2(e) besides the caller's scale. What a row must not see gets weight 0, which changes no bit.
"""

from __future__ import annotations

import numpy as np

from ..derive.tileops import plain_index
from ..simd import (
    F16,
    F32,
    I32V,
    LANES,
    TARGET,
    U16,
    bf16_to_f32,
    bits,
    byte_table,
    cast,
    fma,
    get,
    inline,
    iota,
    load,
    load_f32,
    maximum,
    outer_fma,
    prefetch_l2,
    reduce_add,
    reduce_max,
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
from ..simd.mathfn import tanh
from . import latent as attention_latent
from .dots import fenced, float_products
from .int_scores import query_writer, scorer
from .int_values import weigher
from .layout import BLOCK, CACHE_LINE, HEADER

# vectors side by side: panels of K, parts of a row of V; ROWS * WIDE sums, WIDE loads and a broadcast fit the registers
WIDE = 4 if TARGET.name in ("avx512", "neon") else 2
THIN = 3  # up to so many rows four vectors stand side by side: chains of sums that hide the latency of fma
TILES = 4  # full tiles of an item: they use a chunk of K and V again from the L2 cache
ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
VECTOR = LANES * 4  # bytes
LOWEST, MASKED = np.float32(-3e38), np.float32(-np.inf)
LOG2E = np.float32(1.4426950408889634)
# of exp2: the least exponent; what leaves round(x) + 127 in the low bits of a sum; (2^r - 1) / r for |r| <= 1/2,
# interpolated at Chebyshev points, highest power first; 1
EXP2 = np.float32(
    [-127, 3 * 2**22 + 127]
    + [0.0001545316294, 0.001339086336, 0.009618082557, 0.05550357114, 0.24022650761, 0.69314718803, 1]
)


def _exp2(number):
    """Function (x, at): 2^x for x <= 0, relative error 1e-7; exactly 1 at 0, exactly 0 from -127 down. number: function
    (at, i) that gives EXP2[i] in every lane.
    """

    @inline
    def power(x, at):
        x = maximum(x, number(at, 0))
        shifted = x + number(at, 1)
        r = x - (shifted - number(at, 1))
        p = fma(number(at, 2), r, number(at, 3))
        for i in range(4, 9):
            p = fma(p, r, number(at, i))
        return p * bits(F32, bits(I32V, shifted) << 23)

    return power


@inline
def _spread(at, i):
    return splat(F32, EXP2[i])


@inline
def _lying(at, i):
    return load(F32, at + i * VECTOR)


_exp2_spread = _exp2(_spread)
# its numbers are operands in memory: with eight of them in registers there is no room for what is computed
exp2_near = _exp2(_lying)


@inline
def exp2(x):
    return _exp2_spread(x, 0)


@inline
def first_visible(pos, window):
    """First position that the row at pos sees."""
    return max(pos - window + 1, 0) if window > 0 else 0


def wide_of(n_rows: int, latent: bool = False) -> int:
    """Vectors side by side in a tile of so many rows."""
    return 4 if n_rows <= THIN and not latent else WIDE


def _fold(pair, n: int):
    """A function that folds a tile of 2 or 4 vectors into one."""

    @inline
    def two(t):
        return pair(get(t, 0), get(t, 1))

    @inline
    def four(t):
        return pair(pair(get(t, 0), get(t, 1)), pair(get(t, 2), get(t, 3)))

    return four if n == 4 else two


def _prefetcher(n_bytes: int):
    """Function (address): ask for what one step of the inner loops reads."""

    @inline
    def ask(address):
        for i in range(0, n_bytes, CACHE_LINE):
            prefetch_l2(address + i)

    return ask


def reader(elem: str, n: int):
    """Function (address, stride): n vectors of this type as f32."""

    @inline
    def f16(at, stride):
        return cast(F32, tile_load(F16, n, at, stride))

    @inline
    def bf16(at, stride):
        return bf16_to_f32(tile_load(U16, n, at, stride))

    @inline
    def plain(at, stride):
        return tile_load(F32, n, at, stride)

    return {"f16": f16, "bf16": bf16, "f32": plain}[elem]


def products(elem: str, n_rows: int, wide: int):
    """Function (acc, numbers, row step, at, stride) as attention_dots.float_products; wider tiles leave the order to
    LLVM."""
    if n_rows <= THIN and TARGET.name == "avx2":
        return float_products(elem, n_rows, wide)
    read = reader(elem, wide)

    @inline
    def add(acc, numbers, row_step, at, stride):
        v = read(at, stride)
        return outer_fma(acc, tile_splat(F32, n_rows, numbers, row_step), v)

    return add


def _weigh(n_rows, wide, elem, panel):
    """sums[row][0 .. wide) += weights[row][p] * V[p][...] for n positions; V rows are v_step bytes apart,
    those needed next are `ahead` bytes on. Weights are [position / panel][row][panel].
    """
    n_sums, add, size = n_rows * wide, products(elem, n_rows, wide), ELEMENT_BYTES[elem]
    row_step, ask = panel * 4, _prefetcher(wide * LANES * size)

    @inline
    def weigh(sums, weights, values, v_step, n, ahead):
        acc = tile_load(F32, n_sums, sums, VECTOR)
        for first in range(0, n, panel):
            w = weights + first * n_rows * 4
            for p in range(min(panel, n - first)):
                at = values + (first + p) * v_step
                ask(at + ahead)
                acc = add(acc, w + p * 4, row_step, at, LANES * size)
        tile_store(sums, VECTOR, acc)

    return weigh


@inline
def _nothing(*words):
    """In place of a function that is not called."""


def work_bytes(n_rows: int, v_dim: int) -> int:
    """Bytes of the work area of a tile (tile_of)."""
    return n_rows * (BLOCK * 4 + 64 + 3 * VECTOR + v_dim * 4)


def tile_of(n_rows, k_dim, v_dim, k_kv, v_kv, latent=False, softcap=False):
    """The inner loops for a tile of n_rows rows: `prepare` rounds queries (for quantized keys), `start` empties a work
    area, `score_block` and then `weigh_block` add the positions of a block, `take` copies m, l and sums of a row out as
    a partial.

    Work area: scores [BLOCK / panel][n_rows][panel]; m, vectors of l, a block's share and unit per row; sums
    [v_dim / panel][n_rows][panel], and the rest of v_dim likewise.
    """
    k_quantized, v_quantized = not k_kv.is_plain, not v_kv.is_plain
    k_elem, v_elem = (kv.name if kv.is_plain else "f32" for kv in (k_kv, v_kv))
    wide = wide_of(n_rows, latent)
    panel = wide * LANES  # positions scored at once
    fold_max, numbers_of = _fold(maximum, wide), byte_table(np.repeat(EXP2, LANES).tobytes())
    multiply, k_size, v_size = products(k_elem, n_rows, wide), ELEMENT_BYTES[k_elem], ELEMENT_BYTES[v_elem]
    n_scores, k_row, panel_step = n_rows * wide, k_dim * 4, k_dim * LANES * k_size
    n_wide, n_rest = v_dim // panel, v_dim % panel // LANES  # panel is also the width of wide vectors of V
    rest = max(n_rest, 1)
    weigh, weigh_rest = _weigh(n_rows, wide, v_elem, panel), _weigh(n_rows, rest, v_elem, panel)
    ask = _prefetcher(panel * k_size)
    at_m = n_rows * BLOCK * 4
    at_seen = at_m + 32  # i32 (first, last position in the block) of each row, where not all see all of it
    at_l = at_m + n_rows * 64
    at_share = at_l + n_rows * VECTOR
    at_unit = at_share + n_rows * VECTOR
    at_sums = at_unit + n_rows * VECTOR
    at_rest = at_sums + n_wide * n_rows * panel * 4
    v_step = (k_dim if latent else v_dim) * v_size
    k_cell, v_cell = k_kv.row_bytes(k_dim), v_kv.row_bytes(v_dim)

    @inline
    def score_panels(queries, keys, scores, ahead):
        """scores[row][position] of the panel positions at keys; the panels needed next are `ahead` bytes on."""
        acc = tile_zeros(F32, n_scores)
        for d in range(k_dim):
            ask(keys + ahead + d * panel * k_size)
            acc = multiply(acc, queries + d * 4, k_row, keys + d * LANES * k_size, panel_step)
        tile_store(scores, VECTOR, acc)

    score = attention_latent.score(n_rows, k_dim, panel, reader, k_elem) if latent else score_panels

    if k_quantized:
        prepare, score_codes = query_writer(k_kv, n_rows, k_dim), scorer(k_kv, n_rows, k_dim, wide)
    else:
        prepare = score_codes = _nothing
    weigh_codes = weigher(v_kv, n_rows, v_dim, wide, latent) if v_quantized else _nothing

    @inline
    def limit(scores, cap):
        """scores = cap * tanh(scores / cap), of one panel of positions."""
        if softcap:
            share = np.float32(1) / cap
            for i in range(n_scores):
                at = scores + i * VECTOR
                store(at, tanh(load(F32, at) * share) * cap)

    @inline
    def mask(scores, begin, first, last):
        """-inf for positions outside first .. last; the vector at scores holds those from begin on."""
        positions = iota(I32V) + begin
        seen = load(F32, scores)
        seen = select(positions >= first, seen, splat(F32, MASKED))
        store(scores, select(positions <= last, seen, splat(F32, MASKED)))

    @inline
    def scale_sums(work, row, factor):
        for s in range(n_wide):
            at = work + at_sums + (s * n_rows + row) * panel * 4
            tile_store(at, VECTOR, tile_load(F32, wide, at, VECTOR) * factor)
        for s in range(n_rest):
            at = work + at_rest + (row * n_rest + s) * VECTOR
            store(at, load(F32, at) * factor)

    @inline
    def raise_top(work, row):
        """m of a row, and with it l and the sums, follow the scores of a block. Weights will be in units of m; those of
        quantized values in units of the block's largest, of which the share is kept.
        """
        top = tile_load(F32, wide, work + row * panel * 4, VECTOR)
        for g in range(1, BLOCK // panel):
            top = maximum(tile_load(F32, wide, work + (g * n_rows + row) * panel * 4, VECTOR), top)
        m, highest = load_f32(work + at_m + row * 4), max(reduce_max(fold_max(top)), LOWEST)
        at_factor, at_own_l = work + at_share + row * VECTOR, work + at_l + row * VECTOR
        if v_quantized:
            store(at_factor, exp2(splat(F32, min(highest - m, m - highest))))
        if highest > m:
            factor = exp2(splat(F32, m - highest))
            store(at_own_l, load(F32, at_own_l) * factor)
            scale_sums(work, row, factor)
            store_f32(work + at_m + row * 4, highest)
            store(at_factor, splat(F32, np.float32(1)))
        store(work + at_unit + row * VECTOR, splat(F32, highest if v_quantized else max(m, highest)))

    @inline
    def soften(work, row):
        """Scores of a row become weights, which l adds."""
        unit, total, numbers = load(F32, work + at_unit + row * VECTOR), zeros(F32), plain_index(numbers_of())
        for i in range(BLOCK // LANES):
            at, near = work + (i // wide * n_rows * wide + row * wide + i % wide) * VECTOR, fenced(numbers)
            weights = exp2_near(load(F32, at) - unit, near)
            store(at, weights)
            total = total + weights
        at, factor = work + at_l + row * VECTOR, load(F32, work + at_share + row * VECTOR)
        store(at, fma(total, factor, load(F32, at)))

    @inline
    def start(work):
        for row in range(n_rows):
            store_f32(work + at_m + row * 4, LOWEST)
            store(work + at_l + row * VECTOR, splat(F32, np.float32(0)))
            store(work + at_share + row * VECTOR, splat(F32, np.float32(1)))
        for i in range(n_rows * (n_wide * wide + n_rest)):
            store(work + at_sums + i * VECTOR, splat(F32, np.float32(0)))

    @inline
    def seen_all(block, rows):
        """Whether all rows see the whole block."""
        n_used, row0, group, pos0, window = rows
        first, last = pos0 + row0 // group, pos0 + (row0 + n_used - 1) // group
        return block + BLOCK <= first + 1 and block >= first_visible(last, window)

    @inline
    def size_of(block, end, rows):
        """Positions of a block that some row sees; not more than BLOCK."""
        n_used, row0, group, pos0, _ = rows
        return min(BLOCK, min(end, pos0 + (row0 + n_used - 1) // group + 1) - block)

    def score_block(queries, work, at_k, keys, block, end, rows, cap, ahead):
        """Weights of rows (number, first, heads for a KV head, pos0, window; row = token * group + head) for the
        positions from `block` to `end` of a block; m, l and the sums follow. at_k, keys: addresses of its keys in the
        cache and, where quantized, of what keys_reader left; those needed next are `ahead` positions on.
        """
        n_used, row0, group, pos0, window = rows
        n = size_of(block, end, rows)
        for g in range((n + panel - 1) // panel):  # of what comes after them mask leaves nothing
            scores = work + g * n_rows * panel * 4
            if k_quantized:
                score_codes(queries, at_k, keys, g * wide, scores, ahead * k_cell)
            else:
                score(queries, at_k + g * panel * k_dim * k_size, scores, ahead * k_dim * k_size)
            limit(scores, cap)
        if not seen_all(block, rows):
            for row in range(n_used):
                pos = pos0 + (row0 + row) // group
                first = first_visible(pos, window)
                store_i32(work + at_seen + 8 * row, first - block)
                store_i32(work + at_seen + 8 * row + 4, pos - block)
                whole = 0 if first > block else max(pos + 1 - block, 0) // LANES  # vectors that the row sees all of
                for i in range(whole, BLOCK // LANES):
                    at = work + (i // wide * n_rows * wide + row * wide + i % wide) * VECTOR
                    mask(at, block + i * LANES, first, pos)
        for row in range(n_used):
            raise_top(work, row)
        for row in range(n_used):  # a loop of its own: what raise_top waits for overlaps
            soften(work, row)

    def weigh_block(work, at_v, values, block, end, rows, ahead):
        """Adds the values of that block to the sums, by the weights that score_block left."""
        n = size_of(block, end, rows)
        if v_quantized:
            seen = 0 if seen_all(block, rows) else work + at_seen
            shares, sums = work + at_share, work + at_sums
            weigh_codes(work, shares, rows[0], at_v, values, n, seen, sums, work + at_rest, ahead * v_cell)
            return
        for s in range(n_wide):
            sums = work + at_sums + s * n_rows * panel * 4
            weigh(sums, work, at_v + s * panel * v_size, v_step, n, 0 if latent else ahead * v_step)
        if n_rest > 0:
            weigh_rest(work + at_rest, work, at_v + n_wide * panel * v_size, v_step, n, ahead * v_step)

    @inline
    def take(work, row, part):
        store_f32(part, load_f32(work + at_m + row * 4))
        store_f32(part + 4, reduce_add(load(F32, work + at_l + row * VECTOR)))
        for s in range(n_wide):
            at = work + at_sums + (s * n_rows + row) * panel * 4
            tile_store(part + (HEADER + s * panel) * 4, VECTOR, tile_load(F32, wide, at, VECTOR))
        for s in range(n_rest):
            at = work + at_rest + (row * n_rest + s) * VECTOR
            store(part + (HEADER + n_wide * panel + s * LANES) * 4, load(F32, at))

    return prepare, start, inline(score_block), inline(weigh_block), take
