"""A program: the plan's records as the words the runner reads. Built once; what changes per step is in state blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ikpy_llm.engine.graph.graph import OUTPUTS, Value
from ikpy_llm.engine.program.planner import Plan
from ikpy_llm.engine.program.records import CLAIM, At, Scratch, total
from ikpy_llm.kernels.compiler.jit import Kernel
from ikpy_llm.kernels.run import runner
from ikpy_llm.kernels.run.memory import Memory

# Flops after which a step stops for a moment, so that Ctrl-C is obeyed and progress shown: 0.25 s at 32 GFLOP/s. Going
# on takes 5 us, 0.1 % of the 5 ms that they take on the fastest machine we have seen (1.6 TFLOP/s).
PART = 8e9


class Program:
    """`address` and `count` of the records, and the arena their buffers lie in.

    `outside(At)` gives addresses of memory that is not the program's.
    """

    def __init__(self, plan: Plan, kernels: dict[Kernel, int], outside: Callable[[At], int], check: bool = False):
        self.plan, self.records = plan, plan.records
        self.arena = Memory(plan.n_bytes, fill=check)
        n = len(plan.records)
        self._memory = Memory(8 * runner.RECORD * n)
        self.words = self._memory.bytes.view(np.int64).reshape(n, runner.RECORD)
        for i, (record, barrier) in enumerate(zip(plan.records, plan.barriers, strict=True)):
            if len(record.words) > runner.MAX_ARGS:
                raise ValueError(f"{record.op}: {len(record.words)} arguments, a record holds {runner.MAX_ARGS}")
            own = {CLAIM: self._memory.address + 8 * (i * runner.RECORD + runner.CLAIM)}
            row = [kernels[record.kernel], runner.BARRIER * barrier, 0]
            for w in record.words:
                row.append(kernels[w] if isinstance(w, Kernel) else own[w] if w == CLAIM else self._word(w, outside))
            self.words[i, : len(row)] = row
        self.address, self.count = self._memory.address, n
        self.body = next((i for i, r in enumerate(plan.records) if r.rows == OUTPUTS), n)  # records before the head
        self._parts: dict[tuple[int, int], tuple[int, ...]] = {}
        kinds = dict.fromkeys((r.rows, r.cost.window) for r in plan.records)
        self._costs = {k: total(r.cost for r in plan.records if (r.rows, r.cost.window) == k) for k in kinds}

    def parts(self, n: int, count: int) -> tuple[int, ...]:
        """The first `count` records of a step of n tokens, as numbers of records that are run at once: see PART.

        Attention does not count, as it depends on the depth: far down the context parts take longer.
        """
        if (n, count) not in self._parts:
            self._parts[n, count] = tuple(_cut(self.plan, n, count))
        return self._parts[n, count]

    def _word(self, word, outside) -> int:
        if isinstance(word, At):
            return outside(word) + word.offset
        if isinstance(word, Value | Scratch):
            return self.arena.address + self.plan.offsets[word]
        if isinstance(word, float):
            return int(np.float32(word).view(np.uint32))
        return int(word)

    def cost(self, rows: dict[str, int], position: int) -> tuple[int, int]:
        """(flops, bytes moved at best) of a step of so many rows of each kind after `position` older positions."""
        parts = [cost.of(rows[kind], position) for (kind, _), cost in self._costs.items() if rows.get(kind)]
        return sum(p[0] for p in parts), sum(p[1] for p in parts)


def _cut(plan: Plan, n: int, count: int) -> list[int]:
    """Numbers of records that add up to `count`, cut at barriers: each of PART flops, or one epoch that has more."""
    ends = [i + 1 for i, barrier in enumerate(plan.barriers[:count]) if barrier or i + 1 == count]
    out, start, at, flops = [], 0, 0, 0
    for end in ends:
        more = sum(r.cost.flops_row * (1 if r.rows == OUTPUTS else n) for r in plan.records[at:end])
        if at > start and flops + more > PART:
            out.append(at - start)
            start, flops = at, 0
        at, flops = end, flops + more
    return [*out, count - start]
