"""What a session has computed: tokens, time, and how much that was."""

from __future__ import annotations

from dataclasses import dataclass

from ikpy_llm.engine.graph.graph import OUTPUTS, TOKENS
from ikpy_llm.engine.program.program import Program


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


@dataclass(frozen=True)
class Timings:
    """What loading took, and prompts and generation since `Model.load` or `reset`; see `Model.timings`.

    prompt_: steps of several tokens; eval_: steps of one token (generation). _s: seconds of computing, without sampling
    and text; n_: tokens; _bytes: what had to come from memory at least; _flops: floating-point operations.
    """

    load_s: float
    prompt_s: float
    n_prompt: int
    eval_s: float
    n_eval: int
    prompt_bytes: int
    eval_bytes: int
    prompt_flops: int
    eval_flops: int

    @property
    def prompt_rate(self) -> float:
        """Tokens per second of prompts; 0 before any."""
        return self.n_prompt / self.prompt_s if self.n_prompt else 0.0

    @property
    def eval_rate(self) -> float:
        """Tokens per second of generation; 0 before any."""
        return self.n_eval / self.eval_s if self.n_eval else 0.0

    def __str__(self) -> str:
        return (
            f"load {self.load_s:.2f} s; prompt {self.n_prompt} tokens, {self.prompt_s:.3f} s, {self.prompt_rate:.1f} "
            f"t/s; generation {self.n_eval} tokens, {self.eval_s:.3f} s, {self.eval_rate:.1f} t/s"
        )

    def __repr__(self) -> str:
        return f"Timings({self})"
