"""Flash attention over the f16 KV cache: one source for prompts and single tokens, with bit-identical results.

The arithmetic of a row (a token and a head) is fixed, whoever computes it: positions in blocks of BLOCK update a
running softmax, blocks in chunks of CHUNK, both counted from position 0; chunks are joined in order. Scores are sums
over d in order, outputs are sums over positions in order. What a row must not see gets weight 0, which changes no bit.
Rows that share a KV head are tiles of ROWS that share the loads of K and V.

Weights are powers of two: q is scaled by log2(e) besides the caller's scale. State words: [0] n_tokens, [1] pos0.
Layout: attention_layout.py.
"""

from __future__ import annotations

import numpy as np

from . import attention_latent
from .attention_layout import BLOCK, CHUNK, HEADER, SPLIT_TOKENS, partial_bytes
from .simd import (
    F16,
    F32,
    I32V,
    LANES,
    TARGET,
    atomic_add,
    atomic_store,
    bits,
    cast,
    f32,
    fma,
    get,
    inline,
    iota,
    load,
    load_f32,
    load_i64,
    maximum,
    outer_fma,
    prefetch,
    reduce_add,
    reduce_max,
    select,
    splat,
    stack,
    store,
    store_f32,
    tile_load,
    tile_splat,
    tile_store,
    tile_zeros,
)
from .simd.mathfn import tanh

ROWS = 6  # rows of a full tile; ROWS * WIDE sums, WIDE loads and a broadcast fit the registers
FEW = 3  # rows of the narrow tile for what is left over: generation with few heads per KV head
WIDE = 4 if TARGET.name in ("avx512", "neon") else 2  # vectors side by side: panels of K, parts of a row of V
TILES = 4  # full tiles of an item: they use a chunk of K and V again from the L2 cache
CACHE_LINE = 64
PANEL = WIDE * LANES  # positions scored at once
VECTOR = LANES * 4  # bytes
LOWEST, MASKED = np.float32(-3e38), np.float32(-np.inf)
LOG2E = np.float32(1.4426950408889634)
ROUND = np.float32(3 * 2**22 + 127)  # adding it leaves round(x) + 127 in the low bits
# (2^r - 1) / r for |r| <= 1/2, interpolated at Chebyshev points
EXP2 = tuple(
    map(
        np.float32,
        (0.69314718803, 0.24022650761, 0.05550357114, 0.009618082557, 0.001339086336, 0.0001545316294),
    )
)


@inline
def exp2(x):
    """2^x for x <= 0, relative error 1e-7; exactly 1 at 0, exactly 0 from -127 down."""
    x = maximum(x, splat(F32, np.float32(-127)))
    shifted = x + ROUND
    r = x - (shifted - ROUND)
    p = fma(splat(F32, EXP2[5]), r, splat(F32, EXP2[4]))
    p = fma(p, r, splat(F32, EXP2[3]))
    p = fma(p, r, splat(F32, EXP2[2]))
    p = fma(p, r, splat(F32, EXP2[1]))
    p = fma(p, r, splat(F32, EXP2[0]))
    p = fma(p, r, splat(F32, np.float32(1)))
    return p * bits(F32, bits(I32V, shifted) << 23)


@inline
def _first_visible(pos, window):
    """First position that the row at pos sees."""
    return max(pos - window + 1, 0) if window > 0 else 0


@inline
def _chunks(pos0, n_tokens, window):
    """(first, end) of the chunks that a step's rows see."""
    return _first_visible(pos0, window) // CHUNK, (pos0 + n_tokens - 1) // CHUNK + 1


def _join(v_dim):
    """clear, join and finish partial results: maximum m, sum of weights l, sums over V."""

    @inline
    def clear(total):
        store_f32(total, LOWEST)
        store_f32(total + 4, np.float32(0))
        for d in range(0, v_dim, LANES):
            store(total + (HEADER + d) * 4, splat(F32, np.float32(0)))

    @inline
    def join(total, part):
        """total += part. A part that saw nothing changes no bit."""
        m, m_part = load_f32(total), load_f32(part)
        m_new = max(m, m_part)
        a, b = exp2(splat(F32, m - m_new)), exp2(splat(F32, m_part - m_new))
        store_f32(total, m_new)
        store_f32(total + 4, load_f32(total + 4) * reduce_max(a) + load_f32(part + 4) * reduce_max(b))
        for d in range(0, v_dim, LANES):
            at = (HEADER + d) * 4
            store(total + at, fma(load(F32, part + at), b, load(F32, total + at) * a))

    @inline
    def finish(total, y):
        """y = sums / l, 0 where nothing was seen."""
        l = load_f32(total + 4)
        scale = np.float32(1) / l if l > np.float32(0) else np.float32(0)
        for d in range(0, v_dim, LANES):
            store(y + d * 4, load(F32, total + (HEADER + d) * 4) * scale)

    return clear, join, finish


def _fold(pair):
    """A function that folds a tile of WIDE vectors into one."""

    @inline
    def two(t):
        return pair(get(t, 0), get(t, 1))

    @inline
    def four(t):
        return pair(pair(get(t, 0), get(t, 1)), pair(get(t, 2), get(t, 3)))

    return four if WIDE == 4 else two


@inline
def _plus(x, y):
    return x + y


_fold_add, _fold_max = _fold(_plus), _fold(maximum)


@inline
def _prefetch(address):
    """Ask for what one step of the inner loops reads: PANEL f16 values."""
    for i in range(0, PANEL * 2, CACHE_LINE):
        prefetch(address + i)


def _weigh(n_rows, wide):
    """sums[row][0 .. wide) += weights[row][p] * V[p][...] for n positions; V rows are v_step bytes apart,
    those needed next are `ahead` bytes on.
    """
    n_sums, row_step = n_rows * wide, PANEL * 4

    @inline
    def weigh(sums, weights, values, v_step, n, ahead):
        acc = tile_load(F32, n_sums, sums, VECTOR)
        for first in range(0, n, PANEL):
            w = weights + first * n_rows * 4
            for p in range(min(PANEL, n - first)):
                at = values + (first + p) * v_step
                v = cast(F32, tile_load(F16, wide, at, LANES * 2))
                _prefetch(at + ahead)
                acc = outer_fma(acc, tile_splat(F32, n_rows, w + p * 4, row_step), v)
        tile_store(sums, VECTOR, acc)

    return weigh


def _chunk_of(n_rows, k_dim, v_dim, latent=False, softcap=False):
    """The inner loops for a tile of n_rows rows: `run` leaves m, l and sums of the tile in its work area, `take` copies
    a row's out as a partial.

    Work area: scores [BLOCK / PANEL][n_rows][PANEL]; m and a vector of l per row; sums [v_dim / PANEL][n_rows][PANEL],
    and the rest of v_dim likewise.
    """
    n_scores, k_row, panel_step = n_rows * WIDE, k_dim * 4, k_dim * LANES * 2
    n_wide, n_rest = v_dim // PANEL, v_dim % PANEL // LANES  # PANEL is also the width of WIDE vectors of V
    rest = max(n_rest, 1)
    weigh, weigh_rest = _weigh(n_rows, WIDE), _weigh(n_rows, rest)
    at_m = n_rows * BLOCK * 4
    at_l = at_m + n_rows * 64
    at_sums = at_l + n_rows * VECTOR
    at_rest = at_sums + n_wide * n_rows * PANEL * 4
    v_step = (k_dim if latent else v_dim) * 2

    @inline
    def score_panels(queries, panel, scores, ahead):
        """scores[row][position] of the PANEL positions at panel; the panels needed next are `ahead` bytes on."""
        acc = tile_zeros(F32, n_scores)
        for d in range(k_dim):
            k = cast(F32, tile_load(F16, WIDE, panel + d * LANES * 2, panel_step))
            _prefetch(panel + ahead + d * PANEL * 2)
            acc = outer_fma(acc, tile_splat(F32, n_rows, queries + d * 4, k_row), k)
        tile_store(scores, VECTOR, acc)

    score = attention_latent.score(n_rows, k_dim, PANEL) if latent else score_panels

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
            at = work + at_sums + (s * n_rows + row) * PANEL * 4
            tile_store(at, VECTOR, tile_load(F32, WIDE, at, VECTOR) * factor)
        for s in range(n_rest):
            at = work + at_rest + (row * n_rest + s) * VECTOR
            store(at, load(F32, at) * factor)

    @inline
    def soften(work, row):
        """Scores of a row become weights; m, l and the sums follow the new maximum."""
        top = tile_load(F32, WIDE, work + row * PANEL * 4, VECTOR)
        for g in range(1, BLOCK // PANEL):
            top = maximum(tile_load(F32, WIDE, work + (g * n_rows + row) * PANEL * 4, VECTOR), top)
        m = load_f32(work + at_m + row * 4)
        m_new = max(m, reduce_max(_fold_max(top)))
        l = load(F32, work + at_l + row * VECTOR)
        if m_new > m:
            factor = exp2(splat(F32, m - m_new))
            l = l * factor
            scale_sums(work, row, factor)
            store_f32(work + at_m + row * 4, m_new)
        for g in range(BLOCK // PANEL):
            at = work + (g * n_rows + row) * PANEL * 4
            weights = exp2(tile_load(F32, WIDE, at, VECTOR) - m_new)
            tile_store(at, VECTOR, weights)
            l = l + _fold_add(weights)
        store(work + at_l + row * VECTOR, l)

    def run(queries, n_used, work, kpanels, values, begin, end, row0, group, pos0, window, cap):
        """Rows row0 .. row0 + n_used of a KV head (row = token * group + head) over positions begin .. end,
        which lie in one chunk.
        """
        for row in range(n_rows):
            store_f32(work + at_m + row * 4, LOWEST)
            store(work + at_l + row * VECTOR, splat(F32, np.float32(0)))
        for i in range(n_rows * (n_wide * WIDE + n_rest)):
            store(work + at_sums + i * VECTOR, splat(F32, np.float32(0)))
        pos_low, pos_high = pos0 + row0 // group, pos0 + (row0 + n_used - 1) // group
        end = min(end, pos_high + 1)
        begin = max(begin, _first_visible(pos_low, window) // BLOCK * BLOCK)
        for block in range(begin, end, BLOCK):
            n = min(BLOCK, end - block)
            ahead = BLOCK if block + BLOCK <= pos_high else 0
            for g in range(BLOCK // PANEL):
                at_k = kpanels + (block + g * PANEL) * k_dim * 2
                score(queries, at_k, work + g * n_rows * PANEL * 4, ahead * k_dim * 2)
                limit(work + g * n_rows * PANEL * 4, cap)
            if block + BLOCK - 1 > pos_low or block < _first_visible(pos_high, window):
                for row in range(n_used):
                    pos = pos0 + (row0 + row) // group
                    first = _first_visible(pos, window)
                    for i in range(BLOCK // LANES):
                        at = work + (i // WIDE * n_rows * WIDE + row * WIDE + i % WIDE) * VECTOR
                        mask(at, block + i * LANES, first, pos)
            for row in range(n_used):
                soften(work, row)
            at_v = values + block * v_step
            for s in range(n_wide):
                weigh(work + at_sums + s * n_rows * PANEL * 4, work, at_v + s * PANEL * 2, v_step, n, ahead * v_step)
            if n_rest > 0:
                weigh_rest(work + at_rest, work, at_v + n_wide * PANEL * 2, v_step, n, ahead * v_step)

    @inline
    def take(work, row, part):
        store_f32(part, load_f32(work + at_m + row * 4))
        store_f32(part + 4, reduce_add(load(F32, work + at_l + row * VECTOR)))
        for s in range(n_wide):
            at = work + at_sums + (s * n_rows + row) * PANEL * 4
            tile_store(part + (HEADER + s * PANEL) * 4, VECTOR, tile_load(F32, WIDE, at, VECTOR))
        for s in range(n_rest):
            at = work + at_rest + (row * n_rest + s) * VECTOR
            store(part + (HEADER + n_wide * PANEL + s * LANES) * 4, load(F32, at))

    return inline(run), take


def attend(k_dim: int, v_dim: int, latent: bool = False, softcap: bool = False):
    """y = softmax(q k^T * scale) v over the cache, causal, grouped heads.

    Words: q, kcache, vcache, y, n_head, n_head_kv, first_head, n_head_all, n_cells, window, scale (f32), cap (f32),
    scratch, counters, state.
    q f32 [n][n_head_all * k_dim], y f32 [n][n_head_all * v_dim], of which n_head heads from first_head; window 0 sees
    all positions up to its own, else the last `window` of them; position p lies in cell p % n_cells. scratch:
    attention_layout.scratch_bytes. counters: n_counters int64, 0 before and after. Head sizes are multiples of 16.
    softcap: scores s become cap * tanh(s / cap).
    latent: the cache is rows of k_dim for each KV head, whose first v_dim columns are the values; vcache is kcache.

    In steps of at most SPLIT_TOKENS tokens threads get chunks of the sequence; who finishes the last chunk of some rows
    joins them, in order.
    """
    if k_dim % 16 or v_dim % 16:
        raise ValueError(f"attention with heads of {k_dim} and {v_dim}: accepted are multiples of 16")
    clear, join, finish = _join(v_dim)
    run, take = _chunk_of(ROWS, k_dim, v_dim, latent, softcap)
    run_few, take_few = _chunk_of(FEW, k_dim, v_dim, latent, softcap)
    v_row = (k_dim if latent else v_dim) * 2
    part_step, k_row = partial_bytes(v_dim), k_dim * 4
    queries_of = stack(TILES * ROWS * k_row)
    totals_of = stack(TILES * ROWS * part_step)
    part_of = stack(part_step)
    work_of = stack(ROWS * (BLOCK * 4 + 64 + VECTOR + v_dim * 4))

    @inline
    def gather(q, queries, row0, n_rows, group, head0, n_head_all, scale):
        """Rows of a KV head, scaled, one after the other; zeros up to the next multiple of ROWS."""
        for row in range(n_rows):
            source = q + ((row0 + row) // group * n_head_all + head0 + (row0 + row) % group) * k_row
            for d in range(0, k_dim, LANES):
                store(queries + row * k_row + d * 4, load(F32, source + d * 4) * scale)
        for i in range(n_rows * k_row, (n_rows + ROWS - 1) // ROWS * ROWS * k_row, VECTOR):
            store(queries + i, splat(F32, np.float32(0)))

    @inline
    def place(row, group, head, n_head):
        """Number of a KV head's row among all (token, head)."""
        return row // group * n_head + head * group + row % group

    @inline
    def copy(source, target):
        for i in range(0, part_step, VECTOR):
            store(target + i, load(F32, source + i))

    def attend(
        q,
        kcache,
        vcache,
        y,
        n_head,
        n_head_kv,
        first_head,
        n_head_all,
        n_cells,
        window,
        scale: f32,
        cap: f32,
        scratch,
        counters,
        state,
        ith,
        nth,
    ):
        n_tokens, pos0 = load_i64(state), load_i64(state + 8)
        group = n_head // n_head_kv
        n_rows = n_tokens * group  # of a KV head: row = token * group + head
        first_chunk, end_chunk = _chunks(pos0, n_tokens, window)
        split = n_tokens <= SPLIT_TOKENS and end_chunk - first_chunk > 1
        n_spans = end_chunk - first_chunk if split else 1
        n_tiles = (n_rows + ROWS - 1) // ROWS
        item_rows = min(max(n_tiles * n_head_kv * n_spans // (4 * nth), 1), TILES) * ROWS  # results do not depend on it
        n_parts = (n_rows + item_rows - 1) // item_rows
        queries, totals, part, work = queries_of(), totals_of(), part_of(), work_of()
        n_items = n_parts * n_head_kv * n_spans
        for index in range(n_items):
            turn = index % (2 * nth)
            if split:
                owner = index * nth // n_items  # neighbouring chunks: what is prefetched past the end of one is used
            else:
                owner = min(turn, 2 * nth - 1 - turn)  # late rows, which see most, come first; dealt out to and fro
            if owner != ith:
                continue
            span, head, late = index % n_spans, index // n_spans % n_head_kv, index // n_spans // n_head_kv
            row0 = (n_parts - 1 - late) * item_rows
            used = min(item_rows, n_rows - row0)
            kpanels, values = kcache + head * n_cells * k_dim * 2, vcache + head * n_cells * v_row
            gather(q, queries, row0, used, group, first_head + head * group, n_head_all, scale * LOG2E)
            for row in range(used):
                clear(totals + row * part_step)
            first = _first_visible(pos0 + row0 // group, window)
            chunk0 = max(first_chunk + span, first // CHUNK)
            start = max(chunk0 * CHUNK, first // BLOCK * BLOCK) % n_cells
            for i in range(0, BLOCK * k_row // 2, CACHE_LINE):
                prefetch(kpanels + start * k_dim * 2 + i)
            for i in range(0, BLOCK * v_row, CACHE_LINE):
                prefetch(values + start * v_row + i)
            for chunk in range(chunk0, first_chunk + span + 1 if split else end_chunk):
                begin, end = chunk * CHUNK, (chunk + 1) * CHUNK
                if begin > pos0 + (row0 + used - 1) // group:
                    break
                lap = begin // n_cells * n_cells  # what the ring has gone round
                at_k, at_v = kpanels - lap * k_dim * 2, values - lap * v_row
                for tile in range(0, used, ROWS):
                    left = min(ROWS, used - tile)
                    at_q, r = queries + tile * k_row, row0 + tile
                    if left > FEW:
                        run(at_q, left, work, at_k, at_v, begin, end, r, group, pos0, window, cap * LOG2E)
                    else:
                        run_few(at_q, left, work, at_k, at_v, begin, end, r, group, pos0, window, cap * LOG2E)
                    for row in range(left):
                        if left > FEW:
                            take(work, row, part)
                        else:
                            take_few(work, row, part)
                        join(totals + (tile + row) * part_step, part)
            for row in range(used):
                at = place(row0 + row, group, head, n_head)
                if split:
                    copy(totals + row * part_step, scratch + (at * n_spans + span) * part_step)
                else:
                    out = place(row0 + row, group, head, n_head_all) + first_head
                    finish(totals + row * part_step, y + out * v_dim * 4)
            done = counters + 8 * (late * n_head_kv + head)
            if split and atomic_add(done, 1) == n_spans - 1:
                atomic_store(done, 0)
                for row in range(used):
                    at = place(row0 + row, group, head, n_head)
                    clear(part)
                    for i in range(n_spans):
                        join(part, scratch + (at * n_spans + i) * part_step)
                    out = place(row0 + row, group, head, n_head_all) + first_head
                    finish(part, y + out * v_dim * 4)

    return attend
