"""Interleaved types to rows of their base type, for any type: what goes where comes in a table."""

from __future__ import annotations

import numpy as np

from ..simd.ops import load_i32, load_u8, store_u8


def unweave():
    """Words: woven groups, rows of bytes, numbers of groups and of blocks in a row, rows of a group, bytes of a row's
    block, bytes before it, quants.weave.move_table() and its length. Groups are split between threads."""

    def unweave(src, dst, n_groups, n_blocks, rows, n_bytes, meta, moves, n_words, ith, nth):
        row_bytes = meta + n_blocks * n_bytes
        size = rows * row_bytes
        for group in range(ith, n_groups, nth):
            s, first = src + group * size, dst + group * size
            for r in range(rows):
                for i in range(meta):
                    store_u8(first + r * row_bytes + i, load_u8(s))
                    s += 1
            for block in range(n_blocks):
                d, at, end = first + meta + block * n_bytes, moves, moves + 4 * n_words
                while at < end:
                    goal, count = d + load_i32(at), load_i32(at + 4)
                    at += 8
                    byte = np.int64(0)
                    for _ in range(count):
                        x = load_u8(s + load_i32(at)) ^ load_i32(at + 16)
                        byte ^= ((x << load_i32(at + 4)) >> load_i32(at + 8)) & load_i32(at + 12)
                        at += 20
                    store_u8(goal, byte)
                s += rows * n_bytes

    return unweave
