"""Kernels that work on the rows of f32 activations: norm, sums, gates. Rows are [n_tokens][width], one after
the other.

Work is split among threads by rows or by runs of elements. Every element is computed by the same arithmetic wherever
the runs begin, so results do not depend on the number of threads. State words: [0] n_tokens, [1] pos0, [2] n_outputs,
[3] something was not finite, [5] where results go.
"""

from __future__ import annotations

import numpy as np

from ..simd import (
    F32,
    LANES,
    exp,
    f32,
    fma,
    get,
    inline,
    load,
    load_f32,
    load_i64,
    reduce_add,
    reduce_max,
    splat,
    splat_load,
    store,
    store_f32,
    store_i64,
    tile_load,
    tile_zeros,
)
from ..simd.mathfn import ACTS, tanh

ELEMENT = 4  # bytes
RUN = 64  # elements: threads get whole runs, one cache-line pair or more each


@inline
def _run(n, ith, nth):
    """(first, end) of this thread's elements out of n."""
    n_runs = (n + RUN - 1) // RUN
    return n_runs * ith // nth * RUN, min(n_runs * (ith + 1) // nth * RUN, n)


@inline
def row_runs(n_rows, width, ith, nth):
    """(first, end) of this thread's runs of elements that lie inside rows."""
    total = (width + RUN - 1) // RUN * n_rows
    return total * ith // nth, total * (ith + 1) // nth


@inline
def row_run(run, width):
    """(row, first column, end of whole vectors, end) of such a run."""
    runs = (width + RUN - 1) // RUN
    column = run % runs * RUN
    end = min(column + RUN, width)
    return run // runs, column, column + (end - column) // LANES * LANES, end


@inline
def sum_squares(x, n):
    """Sum of the squares of n floats at address x, in an order that norms of all kernels share."""
    full = n // (4 * LANES) * (4 * LANES)
    sums = tile_zeros(F32, 4)
    for i in range(0, full, 4 * LANES):
        part = tile_load(F32, 4, x + i * ELEMENT, LANES * ELEMENT)
        sums = fma(part, part, sums)
    total = reduce_add((get(sums, 0) + get(sums, 1)) + (get(sums, 2) + get(sums, 3)))
    for i in range(full, n):
        v = load_f32(x + i * ELEMENT)
        total += v * v
    return total


@inline
def scaled_copy(source, target, n, end, factor):
    """f32[n] at source, times factor, to target, where zeros follow up to column `end`."""
    whole = n // LANES * LANES
    for i in range(0, whole, LANES):
        store(target + i * ELEMENT, load(F32, source + i * ELEMENT) * factor)
    for i in range(whole, n):
        store_f32(target + i * ELEMENT, load_f32(source + i * ELEMENT) * factor)
    for i in range(n, end):
        store_f32(target + i * ELEMENT, np.float32(0))


def rms_norm(add: bool = False):
    """y = x / sqrt(mean(x^2) + eps) * w for each of n_parts parts of a row, plus the residual if `add`.

    Words: x, w, residual (0 without), y, width (of a part), n_parts, eps (f32), state. y may be x or the residual.
    """

    def rms_norm(x, w, residual, y, width, n_parts, eps: f32, state, ith, nth):
        total, whole = load_i64(state) * n_parts, width // LANES * LANES
        for part in range(total * ith // nth, total * (ith + 1) // nth):
            first = part * width * ELEMENT
            source, target, old = x + first, y + first, residual + first
            scale = np.float32(1.0) / np.sqrt(sum_squares(source, width) / np.float32(width) + eps)
            for i in range(0, whole, LANES):
                v = load(F32, source + i * ELEMENT) * scale * load(F32, w + i * ELEMENT)
                store(target + i * ELEMENT, load(F32, old + i * ELEMENT) + v if add else v)
            for i in range(whole, width):
                one = load_f32(source + i * ELEMENT) * scale * load_f32(w + i * ELEMENT)
                store_f32(target + i * ELEMENT, load_f32(old + i * ELEMENT) + one if add else one)

    return rms_norm


def _pairwise(act):
    """Kernel y[i] = act(a[i], b[i]) over all elements; `act` works on F32 vectors and also serves single elements."""

    def pairwise(a, b, y, width, state, ith, nth):
        first, end = _run(load_i64(state) * width, ith, nth)
        whole = first + (end - first) // LANES * LANES
        for i in range(first, whole, LANES):
            store(y + i * ELEMENT, act(load(F32, a + i * ELEMENT), load(F32, b + i * ELEMENT)))
        for i in range(whole, end):
            one = act(splat_load(F32, a + i * ELEMENT), splat_load(F32, b + i * ELEMENT))
            store_f32(y + i * ELEMENT, reduce_max(one))  # all lanes are equal

    return pairwise


def add():
    """y = x + b, all of the same shape. Words: x, b, y, width, state. y may be x or b."""

    @inline
    def plus(a, b):
        return a + b

    return _pairwise(plus)


def gated(act: str):
    """y = act(gate) * up. Words: gate, up, y, width, state. act is one of mathfn.ACTS; y may be gate or up."""
    activation = ACTS[act]

    @inline
    def gate(a, b):
        return activation(a) * b

    return _pairwise(gate)


def add_bias():
    """y[i, :] = x[i, :] + b. Words: x, b, y, width, state. y may be x. Threads take runs of elements inside rows."""

    def add_bias(x, b, y, width, state, ith, nth):
        first, last = row_runs(load_i64(state), width, ith, nth)
        for run in range(first, last):
            row, column, whole, end = row_run(run, width)
            source, target = x + row * width * ELEMENT, y + row * width * ELEMENT
            for i in range(column, whole, LANES):
                store(target + i * ELEMENT, load(F32, source + i * ELEMENT) + load(F32, b + i * ELEMENT))
            for i in range(whole, end):
                store_f32(target + i * ELEMENT, load_f32(source + i * ELEMENT) + load_f32(b + i * ELEMENT))

    return add_bias


@inline
def scale(x, y, n, factor, ith, nth):
    """y = x * factor for this thread's elements out of n."""
    first, end = _run(n, ith, nth)
    whole = first + (end - first) // LANES * LANES
    for i in range(first, whole, LANES):
        store(y + i * ELEMENT, load(F32, x + i * ELEMENT) * factor)
    for i in range(whole, end):
        store_f32(y + i * ELEMENT, load_f32(x + i * ELEMENT) * factor)


def scaled():
    """y = x * factor[0], one number of the file. Words: x, factor, y, width, state. y may be x."""

    def scaled(x, factor, y, width, state, ith, nth):
        scale(x, y, load_i64(state) * width, load_f32(factor), ith, nth)

    return scaled


def softcap():
    """y = cap * tanh(x / cap). Words: x, y, width, cap (f32), state. y may be x."""

    def softcap(x, y, width, cap: f32, state, ith, nth):
        first, end = _run(load_i64(state) * width, ith, nth)
        whole, share = first + (end - first) // LANES * LANES, np.float32(1) / cap
        for i in range(first, whole, LANES):
            store(y + i * ELEMENT, tanh(load(F32, x + i * ELEMENT) * share) * cap)
        for i in range(whole, end):
            store_f32(y + i * ELEMENT, reduce_max(tanh(splat_load(F32, x + i * ELEMENT) * share) * cap))

    return softcap


def weighted():
    """y = x / (1 + e^-gate), gate one number per row. Words: x, gate, y, width, state. y may be x."""

    def weighted(x, gate, y, width, state, ith, nth):
        first, last = row_runs(load_i64(state), width, ith, nth)
        for run in range(first, last):
            row, column, whole, end = row_run(run, width)
            source, target = x + row * width * ELEMENT, y + row * width * ELEMENT
            factor = splat(F32, np.float32(1)) / (exp(-1.0 * splat_load(F32, gate + row * ELEMENT)) + np.float32(1))
            one = reduce_max(factor)  # all lanes are equal
            for i in range(column, whole, LANES):
                store(target + i * ELEMENT, load(F32, source + i * ELEMENT) * factor)
            for i in range(whole, end):
                store_f32(target + i * ELEMENT, load_f32(source + i * ELEMENT) * one)

    return weighted


def last_rows():
    """y = the last n_outputs of the n_tokens rows of x. Words: x, y, width, state."""

    def last_rows(x, y, width, state, ith, nth):
        n_tokens, n_outputs = load_i64(state), load_i64(state + 16)
        source = x + (n_tokens - n_outputs) * width * ELEMENT
        first, end = _run(n_outputs * width, ith, nth)
        whole = first + (end - first) // LANES * LANES
        for i in range(first, whole, LANES):
            store(y + i * ELEMENT, load(F32, source + i * ELEMENT))
        for i in range(whole, end):
            store_f32(y + i * ELEMENT, load_f32(source + i * ELEMENT))

    return last_rows


def deliver():
    """Copy the rows of x to the address in word 5 of the state; word 3 becomes 1 if a number is not finite. Words: x,
    width, state."""

    def deliver(x, width, state, ith, nth):
        y = load_i64(state + 40)
        first, end = _run(load_i64(state) * width, ith, nth)
        whole, zero = first + (end - first) // LANES * LANES, np.float32(0)
        none, rest = splat(F32, zero), zero  # 0 times a number, which is 0 or not a number
        for i in range(first, whole, LANES):
            v = load(F32, x + i * ELEMENT)
            store(y + i * ELEMENT, v)
            none = fma(v, splat(F32, zero), none)
        for i in range(whole, end):
            one = load_f32(x + i * ELEMENT)
            store_f32(y + i * ELEMENT, one)
            rest += one * zero
        if reduce_add(none) + rest != zero:
            store_i64(state + 24, 1)

    return deliver
