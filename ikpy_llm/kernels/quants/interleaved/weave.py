"""Interleaved types: rows of another type woven together, R at a time, block by block. Imports no Numba.

A declaration (interleaved.py) lists where the bits of a row's block lie in the woven block. From that follow
`weave` and `unweave`, exact inverses of each other; kernels only see rows. In a group of R rows the bytes before the
rows' first blocks come first, row after row, then the woven blocks.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .. import table

Place = tuple  # (bits, bit in the row's block, bit in the woven block[, "prefix" or "flip"]), bits as arrays


@dataclass(frozen=True)
class Woven:
    """An interleaved type: `base`: the type of its rows; `rows` woven together; `columns` and `n_bytes` of a row's
    block; `places(k)` yields Places for the rows k (R, 1)."""

    name: str
    base: str
    rows: int
    columns: int
    n_bytes: int
    places: Callable[[np.ndarray], Iterator[Place]]

    @property
    def meta(self) -> int:
        """Bytes before a row's first block."""
        return table.by_name(self.base).row_meta

    @functools.cached_property
    def moves(self) -> tuple[list, list, np.ndarray]:
        """(to woven, to rows, bits that are inverted on the way, per byte of a woven block); see _slots."""
        rows, woven, flips = [], [], np.zeros(self.rows * self.n_bytes, np.uint8)
        back_rows, back_woven = [], []
        k = np.arange(self.rows)[:, None]
        for width, row_bit, woven_bit, *how in self.places(k):
            row_bit, woven_bit = np.broadcast_arrays(row_bit + 8 * self.n_bytes * k, woven_bit)
            for i in range(width):
                # "prefix": the woven bit is the sum (mod 2) of the row's bits up to it; it goes back by differences
                for m in range(i + 1) if "prefix" in how else (i,):
                    rows.append((row_bit + m).ravel())
                    woven.append((woven_bit + i).ravel())
                for m in (i, i - 1) if "prefix" in how and i else (i,):
                    back_rows.append((row_bit + i).ravel())
                    back_woven.append((woven_bit + m).ravel())
            if "flip" in how:
                flips[(woven_bit + width - 1).ravel() // 8] = 128
        to_woven = _slots(np.concatenate(woven), np.concatenate(rows), len(flips))
        return to_woven, _slots(np.concatenate(back_rows), np.concatenate(back_woven), len(flips)), flips


def _slots(to: np.ndarray, of: np.ndarray, n_bytes: int) -> list[tuple[np.ndarray, ...]]:
    """Moves of single bits as moves of bytes: [(byte it goes to, byte it comes from, shift left, shift right, mask)].
    In one of these arrays a byte is the goal once; what goes to it from several places is in several of them."""
    if set(np.unique(to)) != set(range(8 * n_bytes)) or not set(np.unique(of)) == set(range(8 * n_bytes)):
        raise TypeError("some bits have no place")
    moves: dict[tuple[int, int, int], int] = {}
    for goal, source in zip(to.tolist(), of.tolist(), strict=True):
        key = goal >> 3, source >> 3, (goal & 7) - (source & 7)
        moves[key] = moves.get(key, 0) ^ 1 << (goal & 7)
    slots: list[list[tuple]] = []
    seen = [0] * n_bytes
    for (goal, source, shift), mask in sorted(moves.items()):
        if seen[goal] == len(slots):
            slots.append([])
        slots[seen[goal]].append((goal, source, max(shift, 0), max(-shift, 0), mask))
        seen[goal] += 1
    return [(np.array(s)[:, 0], np.array(s)[:, 1], *np.array(s)[:, 2:].T.astype(np.uint8)) for s in slots]


def _moved(blocks: np.ndarray, slots: list) -> np.ndarray:
    """uint8 [blocks][bytes], rearranged."""
    out = np.empty_like(blocks)
    for i, (goal, source, left, right, mask) in enumerate(slots):
        part = np.take(blocks, source, axis=1)
        part <<= left
        part >>= right
        part &= mask
        if i == 0:  # sorted, and every byte is a goal
            out = part
        else:
            out[:, goal] ^= part
    return out


def interleaved(base: str, columns: int | None = None):
    """Decorator of the function `places`: it becomes the Woven type named after it."""

    def declare(places) -> Woven:
        info, row = table.by_name(places.__name__), table.by_name(base)
        n = columns or row.block
        if (info.bytes * n // info.block, info.row_meta) != (row.bytes * n // row.block, row.row_meta):
            raise TypeError(f"{info.name}: its rows are not those of {base}")
        return Woven(info.name, base, info.interleave, n, row.bytes * n // row.block, places)

    return declare


@functools.cache
def types() -> dict[str, Woven]:
    """All interleaved types by name."""
    found = vars(importlib.import_module(f"{__package__}.places")).values()
    return {w.name: w for w in found if isinstance(w, Woven)}


def base_of(name: str) -> str:
    """The type of the rows of `name`: itself, if it is not interleaved."""
    if name == "I2_S":
        return "IQ2_BN"
    woven = types().get(name)
    return woven.base if woven else name


def weave(name: str, rows: np.ndarray) -> np.ndarray:
    """Rows uint8 [n][row bytes] of the base type -> uint8 (n_bytes,), as a file has them. ValueError for a number of
    rows that is no multiple of the type's."""
    w = types()[name]
    n_blocks = (rows.shape[1] - w.meta) // w.n_bytes
    check(name, len(rows), n_blocks * w.columns)
    groups = len(rows) // w.rows
    x = np.ascontiguousarray(rows).reshape(groups, w.rows, w.meta + n_blocks * w.n_bytes)
    out = np.empty((groups, w.rows * x.shape[-1]), np.uint8)
    out[:, : w.rows * w.meta] = x[:, :, : w.meta].reshape(groups, -1)
    blocks = x[:, :, w.meta :].reshape(groups, w.rows, n_blocks, w.n_bytes).transpose(0, 2, 1, 3)
    to_woven, _, flips = w.moves
    woven = _moved(np.ascontiguousarray(blocks).reshape(groups * n_blocks, -1), to_woven) ^ flips
    out[:, w.rows * w.meta :] = woven.reshape(groups, -1)
    return out.ravel()


def check(name: str, rows: int, columns: int) -> None:
    """ValueError for a matrix that cannot be taken apart."""
    woven = types().get(name)
    many, unit = (woven.rows, woven.columns) if woven else (1, 128)  # I2_S
    if rows < 1 or rows % many:
        raise ValueError(f"{name} needs a multiple of {many} rows, not {rows}")
    if columns < 1 or columns % unit:
        raise ValueError(f"{name}: {rows} x {columns}: columns must be a positive multiple of {unit}")


def unweave(name: str, data: np.ndarray, n_rows: int, columns: int) -> np.ndarray:
    """uint8 (n_bytes,) as a file has them -> rows uint8 [n][row bytes] of the base type. ValueError as `check`.

    The oracle of derive/unweave.py, which does the same as machine code.
    """
    check(name, n_rows, columns)
    if name == "I2_S":
        return from_i2_s(data, n_rows, columns)
    w, size = types()[name], table.row_bytes(base_of(name), columns)
    groups, n_blocks = n_rows // w.rows, (size - w.meta) // w.n_bytes
    x, out = data.reshape(groups, -1), np.empty((groups, w.rows, size), np.uint8)
    _, to_rows, flips = w.moves
    out[:, :, : w.meta] = x[:, : w.rows * w.meta].reshape(groups, w.rows, -1)
    woven = x[:, w.rows * w.meta :].reshape(groups * n_blocks, -1)
    blocks = _moved(woven ^ flips, to_rows).reshape(groups, n_blocks, w.rows, -1)
    out[:, :, w.meta :] = blocks.transpose(0, 2, 1, 3).reshape(groups, w.rows, -1)
    return out.reshape(n_rows, size)


@functools.cache
def move_table(name: str, row_bytes: int) -> np.ndarray:
    """int32: for every byte of the rows' blocks its place (from the first row's block), the number of its moves, and of
    each the byte of the woven block, shift left, shift right, mask, and what is inverted before."""
    w = types()[name]
    _, slots, flips = w.moves
    moves = sorted((int(move[0]), *map(int, move[1:])) for slot in slots for move in zip(*slot, strict=True))
    words, last = [], -1
    for goal, source, left, right, mask in moves:
        if goal != last:
            words += [goal // w.n_bytes * row_bytes + goal % w.n_bytes, 0]
            count, last = len(words) - 1, goal
        words[count] += 1
        words += [source, left, right, mask, int(flips[source])]
    return np.array(words, np.int32)


def from_i2_s(data: np.ndarray, n_rows: int, columns: int) -> np.ndarray:
    """I2_S, four ternary weights to a byte and one scale behind all of them, as rows of IQ2_BN with that scale each."""
    n = n_rows * columns // 4
    out = np.empty((n_rows, table.row_bytes("IQ2_BN", columns)), np.uint8)
    # of a block of 128 columns, byte i holds columns i, i + 32, i + 64, i + 96, highest bits first
    q = data[:n].reshape(-1, 1, 32) >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
    q = q.reshape(-1, 4, 16) << np.array([0, 2, 4, 6], np.uint8)[:, None]  # a block of IQ2_BN: 64 columns, 4 x 16
    out[:, 4:] = np.bitwise_or.reduce(q, axis=1).reshape(len(out), -1)
    out[:, :4] = data[n : n + 4]
    return out
