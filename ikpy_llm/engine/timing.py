"""What a session has computed: tokens, time, and how much that was."""

from __future__ import annotations

from ikpy_llm.engine.graph import OUTPUTS, TOKENS
from ikpy_llm.engine.program import Program


class Timing:
    """What has been computed since the last reset: tokens, seconds, bytes moved from memory at best, flops."""

    def __init__(self):
        self.tokens, self.seconds = 0, 0.0
        self._steps: list[list] = []  # [program, tokens and rows of logits of a step, first position, equal steps]

    def add(self, seconds: float, program: Program, n: int, n_outputs: int, position: int) -> None:
        """Count a step; what it moved is worked out when somebody asks, as between two tokens all code is cold."""
        self.tokens += n
        self.seconds += seconds
        last = self._steps[-1] if self._steps else ()
        if last and last[:3] == [program, n, n_outputs] and position == last[3] + last[4] * n:
            last[4] += 1
        else:
            self._steps.append([program, n, n_outputs, position, 1])

    @property
    def flops(self) -> int:
        return sum(flops for flops, _ in self._costs())

    @property
    def bytes(self) -> int:
        return sum(n_bytes for _, n_bytes in self._costs())

    def _costs(self):
        for program, n, n_outputs, position, times in self._steps:
            for i in range(times):
                yield program.cost({TOKENS: n, OUTPUTS: n_outputs}, position + i * n)
