"""Where a step's choice of experts lies in memory: what the engine allocates and kernels address. Imports no Numba.

A slot is one chosen expert of one row. The matrix kernels want the rows of one expert side by side: a step's slots
stand in groups, one per expert, each padded to whole tiles of t columns by repeating its last row. A step of one row
(t = 1) has one group per slot, in the order of choice.

    header   i64[8]                   word 0: number of groups
    ids      i32[n_rows][n_used]      expert of each slot, best first, -1 = left out
    weights  f32[n_rows][n_used]
    places   i32[n_rows][n_used]      row of the slot among the grouped rows
    order    i32[n_slots]             row of the step that each grouped row comes from
    groups   i32[n_groups][4]         expert, first row, number of rows, unused
"""

from __future__ import annotations

from dataclasses import dataclass

HEADER = 64
MAX_EXPERTS = 1024


@dataclass(frozen=True)
class RoutesLayout:
    """For steps of at most n_rows rows; t columns per tile of the matrix kernels."""

    n_rows: int
    n_used: int
    n_expert: int
    t: int

    @property
    def n_groups(self) -> int:
        """Most groups."""
        return self.n_used if self.t == 1 else min(self.n_expert, self.n_rows * self.n_used)

    @property
    def n_slots(self) -> int:
        """Most grouped rows."""
        return self.n_rows * self.n_used + self.n_groups * (self.t - 1)

    @property
    def ids(self) -> int:
        return HEADER

    @property
    def weights(self) -> int:
        return self.ids + 4 * self.n_rows * self.n_used

    @property
    def places(self) -> int:
        return self.weights + 4 * self.n_rows * self.n_used

    @property
    def order(self) -> int:
        return self.places + 4 * self.n_rows * self.n_used

    @property
    def groups(self) -> int:
        return self.order + 4 * self.n_slots

    @property
    def n_bytes(self) -> int:
        return self.groups + 16 * self.n_groups
