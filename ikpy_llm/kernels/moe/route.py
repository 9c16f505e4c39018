"""Choosing experts, bringing the rows of each expert together, and adding up what the experts make of them.

Layout of `routes`: moe/layout.py. State words: [0] rows; of the state of the slots: [0] grouped rows, [4] slots used
since the model was opened.
"""

from __future__ import annotations

import numpy as np

from ..rows.rowwise import ELEMENT, row_run, row_runs, scale
from ..simd import (
    F32,
    LANES,
    atomic_add,
    exp,
    f32,
    fma,
    inline,
    load,
    load_f32,
    load_i32,
    load_i64,
    splat,
    stack,
    store,
    store_f32,
    store_i32,
    store_i64,
)
from .layout import HEADER, MAX_EXPERTS

GATINGS = ("softmax", "sigmoid")
GROUP_SCORES = ("", "max", "top2")
LOWEST = np.float32(-3e38)


@inline
def _best(values, taken, first, end):
    """Index of the largest value not taken, the first of equals; never -1, whatever the values are."""
    best, at = LOWEST, np.int64(-1)
    for i in range(first, end):
        v = load_f32(values + 4 * i)
        if load_i32(taken + 4 * i) == 0 and (at < 0 or v > best):
            best, at = v, np.int64(i)
    return at


def _gate(gating: str):
    """Function (logits, n, probabilities): n logits to probabilities; LANES floats past the end are written too."""
    lanes = LANES
    if gating == "softmax":

        @inline
        def gate(logits, n, p):
            top = LOWEST
            for i in range(n):
                top = max(top, load_f32(logits + 4 * i))
            for i in range(n):
                store_f32(p + 4 * i, load_f32(logits + 4 * i) - top)
            for i in range(0, n, lanes):
                store(p + 4 * i, exp(load(F32, p + 4 * i)))
            total = np.float32(0)
            for i in range(n):
                total += load_f32(p + 4 * i)
            for i in range(n):
                store_f32(p + 4 * i, load_f32(p + 4 * i) / total)
    elif gating == "sigmoid":

        @inline
        def gate(logits, n, p):
            for i in range(n):
                store_f32(p + 4 * i, -load_f32(logits + 4 * i))
            for i in range(0, n, lanes):
                store(p + 4 * i, splat(F32, np.float32(1)) / (exp(load(F32, p + 4 * i)) + np.float32(1)))
    else:
        raise ValueError(f"route: gating {gating!r}; accepted are {', '.join(GATINGS)}")
    return gate


def _limit(group_score: str):
    """Function (scores, taken, n, n_group, n_group_used): take all experts of the groups that score low."""
    if group_score not in GROUP_SCORES:
        raise ValueError(f"route: score of groups {group_score!r}; accepted are {', '.join(GROUP_SCORES)}")
    use_two, of_groups, left_out = group_score == "top2", stack(4 * MAX_EXPERTS), stack(4 * MAX_EXPERTS)
    if not group_score:

        @inline
        def limit(scores, taken, n, n_group, n_group_used):
            pass

        return limit

    @inline
    def limit(scores, taken, n, n_group, n_group_used):
        totals, chosen, size = of_groups(), left_out(), n // n_group
        for g in range(n_group):
            store_i32(chosen + 4 * g, 0)
            best = _best(scores, taken, g * size, (g + 1) * size)
            total = load_f32(scores + 4 * best)
            if use_two and size > 1:
                store_i32(taken + 4 * best, 1)
                total += load_f32(scores + 4 * _best(scores, taken, g * size, (g + 1) * size))
                store_i32(taken + 4 * best, 0)
            store_f32(totals + 4 * g, total)
        for _ in range(n_group_used):
            store_i32(chosen + 4 * _best(totals, chosen, 0, n_group), 1)
        for i in range(n):
            if load_i32(chosen + 4 * (i // size)) == 0:
                store_i32(taken + 4 * i, 1)

    return limit


def route(gating: str, group_score: str = "", single: bool = False):
    """The n_used experts of each row, best first, with their weights.

    p = softmax or sigmoid of the logits; experts are chosen by p + bias, among those of the n_group_used best of
    n_group equal groups (score: the largest, or the sum of the two largest). weight = p (/ the sum of the chosen, if
    norm) * scale. With k_min > 0 and threshold > 0 those after the first k_min are left out whose p + bias is not above
    threshold times the best.

    Words: logits f32 [n][n_expert], bias or 0, routes, o_weights, o_places, o_groups, n_expert, n_used, n_group,
    n_group_used, norm, scale (f32), k_min, threshold (f32), state, slots (state). single: steps of one row, whose
    groups are written too.
    """
    gate, limit = _gate(gating), _limit(group_score)
    p_of, score_of, taken_of = stack(4 * (MAX_EXPERTS + LANES)), stack(4 * MAX_EXPERTS), stack(4 * MAX_EXPERTS)

    def route(
        logits,
        bias,
        routes,
        o_weights,
        o_places,
        o_groups,
        n_expert,
        n_used,
        n_group,
        n_group_used,
        norm,
        scale: f32,
        k_min,
        threshold: f32,
        state,
        slots,
        ith,
        nth,
    ):
        p, scores, taken = p_of(), score_of(), taken_of()
        n, n_kept = load_i64(state), np.int64(0)
        for row in range(n * ith // nth, n * (ith + 1) // nth):
            gate(logits + 4 * row * n_expert, n_expert, p)
            for i in range(n_expert):
                store_f32(
                    scores + 4 * i, load_f32(p + 4 * i) + (load_f32(bias + 4 * i) if bias != 0 else np.float32(0))
                )
                store_i32(taken + 4 * i, 0)
            limit(scores, taken, n_expert, n_group, n_group_used)
            at, kept, total, top = row * n_used, np.int64(0), np.float32(0), np.float32(0)
            for j in range(n_used):
                e = _best(scores, taken, 0, n_expert)
                score = load_f32(scores + 4 * e)
                if j == 0:
                    top = score
                if kept == j and (j < k_min or k_min <= 0 or threshold <= np.float32(0) or score > threshold * top):
                    kept += 1
                    total += load_f32(p + 4 * e)
                    store_i32(routes + HEADER + 4 * (at + j), e)
                else:
                    store_i32(routes + HEADER + 4 * (at + j), -1)
                store_i32(taken + 4 * e, 1)
            divisor = max(total, np.float32(1e-20)) if norm != 0 else np.float32(1)
            for j in range(n_used):
                e, w = load_i32(routes + HEADER + 4 * (at + j)), np.float32(0)
                if j < kept:
                    w = load_f32(p + 4 * e) / divisor * scale
                store_f32(routes + o_weights + 4 * (at + j), w)
                if single:
                    store_i32(routes + o_places + 4 * (at + j), j if j < kept else -1)
                    store_i32(routes + o_groups + 16 * j, e)
                    store_i32(routes + o_groups + 16 * j + 4, j)
                    store_i32(routes + o_groups + 16 * j + 8, 1)
            n_kept += kept
            if single:
                store_i64(routes, kept)
                store_i64(slots, kept)
        if n_kept > 0:
            atomic_add(slots + 32, n_kept)

    return route


def group(t: int):
    """Slots of all rows ordered by expert: places, order and groups; thread 0 alone. t: columns per tile.

    Words: routes, o_places, o_order, o_groups, n_expert, n_used, state, slots (state).
    """
    counts_of = stack(4 * MAX_EXPERTS)

    def group(routes, o_places, o_order, o_groups, n_expert, n_used, state, slots, ith, nth):
        if ith == 0:
            n, counts, ids = load_i64(state) * n_used, counts_of(), routes + HEADER
            for e in range(n_expert):
                store_i32(counts + 4 * e, 0)
            for i in range(n):
                e = load_i32(ids + 4 * i)
                if e >= 0:
                    store_i32(counts + 4 * e, load_i32(counts + 4 * e) + 1)
            first, n_groups = np.int64(0), np.int64(0)
            for e in range(n_expert):
                count = load_i32(counts + 4 * e)
                store_i32(counts + 4 * e, first)
                if count > 0:
                    padded = (count + t - 1) // t * t
                    at = routes + o_groups + 16 * n_groups
                    store_i32(at, e)
                    store_i32(at + 4, first)
                    store_i32(at + 8, padded)
                    first += padded
                    n_groups += 1
            store_i64(routes, n_groups)
            store_i64(slots, first)
            for i in range(n):
                e, place = load_i32(ids + 4 * i), np.int64(-1)
                if e >= 0:
                    place = load_i32(counts + 4 * e)
                    store_i32(counts + 4 * e, place + 1)
                    store_i32(routes + o_order + 4 * place, i // n_used)
                store_i32(routes + o_places + 4 * i, place)
            for g in range(n_groups):  # what a tile has too much is the last row again
                at = routes + o_groups + 16 * g
                end = load_i32(at + 4) + load_i32(at + 8)
                last = load_i32(counts + 4 * load_i32(at))
                for place in range(last, end):
                    store_i32(routes + o_order + 4 * place, load_i32(routes + o_order + 4 * (last - 1)))

    return group


def gather(t: int):
    """Quantized rows (tiles of one column) as tiles of t columns, group by group. A record of either is n_words words
    per column, those of the columns of a tile interleaved.

    Words: acts, stride, n_words, n_slices, out, out_stride, routes, o_order, o_groups, state.
    """

    def gather(acts, stride, n_words, n_slices, out, out_stride, routes, o_order, o_groups, state, ith, nth):
        n, turn = load_i64(state), np.int64(0)
        for g in range(load_i64(routes)):
            at = routes + o_groups + 16 * g
            first, n_tiles = load_i32(at + 4), load_i32(at + 8) // t
            target = out + first // t * n_slices * out_stride
            for tile in range(n_tiles):
                if turn == ith:
                    rows = routes + o_order + 4 * (first + tile * t)
                    for s in range(n_slices):
                        record = target + (s * n_tiles + tile) * out_stride
                        for c in range(t):
                            source = acts + (s * n + load_i32(rows + 4 * c)) * stride
                            for i in range(n_words):
                                store_i32(record + 4 * (i * t + c), load_i32(source + 4 * i))
                turn = turn + 1 if turn + 1 < nth else 0

    return gather


def scaled():
    """y = x * factors[e] for the grouped rows of each expert e. Words: x f32 [slots][width], factors f32[experts], y,
    width, routes, o_groups. y may be x.
    """

    def scaled(x, factors, y, width, routes, o_groups, ith, nth):
        for g in range(load_i64(routes)):
            at = routes + o_groups + 16 * g
            factor = load_f32(factors + 4 * load_i32(at))
            first, n = load_i32(at + 4) * width * ELEMENT, load_i32(at + 8) * width
            scale(x + first, y + first, n, factor, ith, nth)

    return scaled


def combine(add: bool = False):
    """y = sum of weight * grouped row over the slots of a row, in their order; plus the residual if `add`.

    Words: x f32 [slots][width], residual (0 without), y, width, routes, o_weights, o_places, n_used, state. y may be
    the residual.
    """

    def combine(x, residual, y, width, routes, o_weights, o_places, n_used, state, ith, nth):
        first, last = row_runs(load_i64(state), width, ith, nth)
        for run in range(first, last):
            row, column, whole, end = row_run(run, width)
            weights, places = routes + o_weights + 4 * row * n_used, routes + o_places + 4 * row * n_used
            base = row * width
            for i in range(column, whole, LANES):
                v = splat(F32, np.float32(0))
                for j in range(n_used):
                    place = load_i32(places + 4 * j)
                    if place >= 0:
                        v = fma(load(F32, x + (place * width + i) * ELEMENT), splat(F32, load_f32(weights + 4 * j)), v)
                store(y + (base + i) * ELEMENT, load(F32, residual + (base + i) * ELEMENT) + v if add else v)
            for i in range(whole, end):
                one = np.float32(0)
                for j in range(n_used):
                    place = load_i32(places + 4 * j)
                    if place >= 0:
                        one += load_f32(x + (place * width + i) * ELEMENT) * load_f32(weights + 4 * j)
                store_f32(y + (base + i) * ELEMENT, load_f32(residual + (base + i) * ELEMENT) + one if add else one)

    return combine
