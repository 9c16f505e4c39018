"""Matrix products over groups of rows, each with a matrix of its own: experts, or the heads of an attention layer.

These kernels call those of derive/ by address, once per group, with the group's addresses, so they work for every type
and layout those have. A group (id, first, count) is rows first .. first + count of x and y and matrix `id`.
ragged: groups are listed in `routes` (moe/layout.py). Otherwise (uniform) group i is matrix i for all rows of the step,
in rows i * n padded to whole tiles; n_groups is then a word.

x and y of a group lie at first * by_row + id * by_id bytes after the start; acts follow each other, one group's records
([slice][tile]) after the other's.
"""

from __future__ import annotations

from ..run.dealing import next_run, own_run
from ..simd import LANES, atomic_add, call_kernel, inline, load_i32, load_i64, stack, store_i64

WORDS = 20  # of the kernel that is called, at most


def _groups(t: int, ragged: bool):
    """(number, group): number(routes, n_groups) and group(routes, o_groups, i, state) -> (id, first, count)."""
    if ragged:

        @inline
        def number(routes, n_groups):
            return load_i64(routes)

        @inline
        def group(routes, o_groups, i, state):
            at = routes + o_groups + 16 * i
            return load_i32(at), load_i32(at + 4), load_i32(at + 8)
    else:

        @inline
        def number(routes, n_groups):
            return n_groups

        @inline
        def group(routes, o_groups, i, state):
            n = load_i64(state)
            return i, i * ((n + t - 1) // t * t), n

    return number, group


@inline
def put(args, i, value):
    """Word i of an argument or state block."""
    store_i64(args + 8 * i, value)


def quantize(t: int, ragged: bool):
    """Rows of each group to acts. Words: kernel (derive.quantize), routes, o_groups, n_groups, x, w (second matrix of
    rows, or 0), by_row, by_id, x_stride, acts, k, stride, n_slices, flavour0, flavour1, flavour2, state.
    """
    number, group = _groups(t, ragged)
    args_of, state_of = stack(8 * WORDS), stack(8 * 4)

    def quantize(
        kernel,
        routes,
        o_groups,
        n_groups,
        x,
        w,
        by_row,
        by_id,
        x_stride,
        acts,
        k,
        stride,
        n_slices,
        flavour0,
        flavour1,
        flavour2,
        state,
        ith,
        nth,
    ):
        args, own = args_of(), state_of()
        put(own, 3, 0)
        put(args, 3, k)
        put(args, 4, x_stride)
        put(args, 5, stride)
        put(args, 6, flavour0)
        put(args, 7, flavour1)
        put(args, 8, flavour2)
        put(args, 9, 0)
        put(args, 10, own)
        for i in range(number(routes, n_groups)):
            id_, first, count = group(routes, o_groups, i, state)
            shift = first * by_row + id_ * by_id
            put(own, 0, count)
            put(args, 0, x + shift)
            put(args, 1, w + shift)
            put(args, 2, acts + first // t * n_slices * stride)
            call_kernel(kernel, args, (ith + i) % nth, nth)
        if load_i64(own + 24) != 0:
            store_i64(state + 24, 1)

    return quantize


def gemm(t: int, ragged: bool):
    """y = W x for each group. Words: kernel (derive.gemm), routes, o_groups, n_groups, w, matrix_bytes, row_bytes,
    acts, stride, n_slices, start, y, by_row, by_id, y_stride (elements), rows, k, totals, totals_bytes, state, claim (a
    counter that is 0). Threads share the matrix of a group; of the last quarter of the groups whoever comes first takes
    a thread's part.
    """
    number, group = _groups(t, ragged)
    args_of, state_of = stack(8 * WORDS), stack(8 * 4)

    def gemm(
        kernel,
        routes,
        o_groups,
        n_groups,
        w,
        matrix_bytes,
        row_bytes,
        acts,
        stride,
        n_slices,
        start,
        y,
        by_row,
        by_id,
        y_stride,
        rows,
        k,
        totals,
        totals_bytes,
        state,
        claim,
        ith,
        nth,
    ):
        args, own = args_of(), state_of()
        put(args, 1, row_bytes)
        put(args, 3, stride)
        put(args, 4, start)
        put(args, 6, y_stride)
        put(args, 7, rows)
        put(args, 8, k)
        put(args, 9, 0)
        put(args, 10, 0)
        put(args, 12, totals_bytes)
        put(args, 13, own)
        put(args, 14, 0)
        n = number(routes, n_groups)
        dealt = n - n // 4 if nth > 1 else n
        unit = ith  # group * nth + part
        while True:
            if unit >= dealt * nth:
                unit = dealt * nth + atomic_add(claim, 1) if dealt < n else n * nth
                if unit >= n * nth:
                    break
            i, part = unit // nth, unit % nth
            id_, first, count = group(routes, o_groups, i, state)
            put(own, 0, count)
            put(args, 0, w + id_ * matrix_bytes)
            put(args, 2, acts + first // t * n_slices * stride)
            put(args, 5, y + first * by_row + id_ * by_id)
            put(args, 11, totals + (ith - part) * totals_bytes)  # the thread's own
            call_kernel(kernel, args, part, nth)
            unit += nth

    return gemm


def gemv(ragged: bool, rows_layout: bool, shared: bool):
    """y = W x for each group of one row. shared: all groups read the same acts. Words: kernel (derive.gemv with n = 1,
    or derive.gemv_rows with rows_layout), routes, o_groups, n_groups, w, matrix_bytes, row_bytes, acts, stride,
    n_slices, start, y, by_row, by_id, rows, k, state, claim (a counter that is 0). Threads get contiguous runs of the
    rows of all groups, of the last quarter whoever comes first.
    """
    number, group = _groups(1, ragged)
    args_of, at, lanes = stack(8 * WORDS), 2 if rows_layout else 1, LANES  # at: word of the acts

    def gemv(
        kernel,
        routes,
        o_groups,
        n_groups,
        w,
        matrix_bytes,
        row_bytes,
        acts,
        stride,
        n_slices,
        start,
        y,
        by_row,
        by_id,
        rows,
        k,
        state,
        claim,
        ith,
        nth,
    ):
        args = args_of()
        put(args, 1, row_bytes)  # of rows_layout, else overwritten
        put(args, 5, rows)  # elements between columns of y; overwritten with rows_layout
        put(args, 7, k)
        put(args, 8, 0)
        put(args, 9, 0)
        put(args, 10, 0)
        panels = (rows + lanes - 1) // lanes  # of a group: rows that are taken together
        panel_bytes = row_bytes * lanes if rows_layout else matrix_bytes // panels
        total = number(routes, n_groups) * panels
        first, end, dealt = own_run(total, panel_bytes, claim, ith, nth)
        while first < total:
            while first < end:
                i, panel = first // panels, first % panels
                id_, row, _ = group(routes, o_groups, i, state)
                n = min(end - first, panels - panel)
                x = acts if shared else acts + row * n_slices * stride
                put(args, 0, w + id_ * matrix_bytes + panel * panel_bytes)
                put(args, at, x)
                put(args, at + 1, stride)
                put(args, at + 2, start)
                put(args, at + 3, y + row * by_row + id_ * by_id + panel * lanes * 4)
                put(args, 6, min(n * lanes, rows - panel * lanes))
                call_kernel(kernel, args, 0, 1)
                first += n
            first, end = next_run(total, dealt, claim, nth)

    return gemv
