"""Records: kernel calls whose arguments are still symbolic.

program/lowering.py makes them, planner.py places their buffers, program.py turns them into words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ikpy_llm.engine.graph.graph import Value
from ikpy_llm.kernels.compiler.jit import Kernel


@dataclass(frozen=True, slots=True)
class At:
    """Memory outside the arena, by kind and key.

    ("file", tensor), ("panel", tensor), ("k", layer), ("v", layer), ("counters", ""), ("state", rows), ("ids", ""),
    ("angles", Angles); `offset` in bytes from there.
    """

    kind: str
    key: object = ""
    offset: int = 0


CLAIM = At("claim")  # the record's own counter, which is 0 when a program starts


@dataclass(eq=False, slots=True)
class Scratch:
    """Working memory of the records that name this object, `bytes` for all threads together."""

    bytes: int


class Cost(NamedTuple):
    """What a record needs: flops and bytes moved, per row of the step, per position seen, and once (weights).

    flops_position: for each row and position it sees; flops_seen: once for each position. `window`: a row sees at most
    so many positions, 0 = all.
    """

    flops_row: int = 0
    bytes_row: int = 0
    bytes_once: int = 0
    flops_position: int = 0
    bytes_position: int = 0
    flops_seen: int = 0
    window: int = 0

    def of(self, rows: int, position: int) -> tuple[int, int]:
        """(flops, bytes) of a step of `rows` rows after `position` older ones."""
        pairs = rows * position + rows * (rows + 1) // 2  # (row, position it sees)
        seen = position + rows  # positions read once per step at best
        if self.window:
            hidden = max(0, position + rows - self.window)  # from the last row
            first = min(rows, hidden)  # so many rows have hidden positions
            pairs -= first * hidden - first * (first - 1) // 2
            seen = min(seen, self.window + rows - 1)
        flops = self.flops_row * rows + self.flops_position * pairs + self.flops_seen * seen
        return flops, self.bytes_row * rows + self.bytes_once + self.bytes_position * seen


def total(costs) -> Cost:
    """The sum of many costs of one window."""
    costs = list(costs)
    return Cost(*map(sum, zip(Cost(), *costs, strict=True)))._replace(window=costs[0].window if costs else 0)


Word = int | float | Value | At | Scratch | Kernel


@dataclass(frozen=True, slots=True)
class Record:
    """A kernel call. `reads` and `writes` (of what changes while a program runs) decide about barriers."""

    kernel: Kernel
    words: tuple[Word, ...]
    reads: tuple[Value | At | Scratch, ...]
    writes: tuple[Value | At | Scratch, ...]
    op: str
    label: str
    cost: Cost
    rows: str

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The record's kernel and those it is given to call."""
        return self.kernel, *(w for w in self.words if isinstance(w, Kernel))

    @property
    def type_name(self) -> str:
        """Type of the weights, "" without."""
        return next((t for k in self.kernels for name, t in k.params if name == "type"), "")
