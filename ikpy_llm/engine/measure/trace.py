"""Where the time of a step goes: its program run as always, on all threads, with every record timed on every thread."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ikpy_llm.engine.graph.graph import OUTPUTS, TOKENS
from ikpy_llm.engine.measure import need
from ikpy_llm.engine.program.program import Program
from ikpy_llm.engine.step.session import Session
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.run import runner
from ikpy_llm.kernels.run.memory import Memory
from ikpy_llm.kernels.run.timed import SLOT

TIMED = jit.Kernel("run.timed")
AT_ROOF = 0.8  # share of a roof from which we say that the machine is the limit, not our code


@dataclass(frozen=True)
class Line:
    """All records of one kind in one step: how many, seconds (mean of the threads), flops, bytes moved at best.

    products: attention's multiply-adds by the rate they go at (need.py); those of others go at "gmacs".
    """

    name: str
    type: str  # of the weights, "" without
    n: int
    seconds: float
    flops: int
    bytes: int
    products: dict[str, int] = field(default_factory=dict)

    @property
    def gbps(self) -> float:
        return self.bytes / self.seconds / 1e9

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds / 1e9

    def share(self, roof: dict[str, float] | None) -> float | None:
        """Share of the roof that is nearer: bytes against GB/s, multiply-adds (two flops) against GMAC/s."""
        return max(self.gbps / roof["gbps"], self.product_share(roof)) if roof else None

    def product_share(self, roof: dict[str, float]) -> float:
        """The time of the multiply-adds at the machine's rates over that of the line."""
        macs = self.products or {"gmacs": self.flops / 2}
        return sum(n / roof.get(name, roof["gmacs"]) for name, n in macs.items()) / self.seconds / 1e9

    def __str__(self) -> str:
        name = f"{self.name} {self.type}"
        return f"{name:28} {self.n:5} {self.seconds * 1e6:10.1f} us {self.gflops:9.1f} GFLOP/s {self.gbps:7.1f} GB/s"


@dataclass(frozen=True)
class Profile:
    """One step of `n_tokens` after `depth` positions: seconds = sum of the lines + waiting + outside.

    waiting: for other threads at barriers, mean of the threads. outside: before and after the machine code.
    """

    n_tokens: int
    depth: int
    n_threads: int
    seconds: float
    waiting: float
    outside: float
    lines: list[Line]  # slowest first

    def as_dict(self, roof: dict[str, float] | None = None) -> dict:
        """Everything, for JSON; `roof` {"gbps", "gmacs"} adds shares and the limits in words."""
        names = ("n_tokens", "depth", "n_threads", "seconds", "waiting", "outside")
        lines = [
            {**vars(line), "gbps": line.gbps, "gflops": line.gflops, "roof_share": line.share(roof)}
            for line in self.lines
        ]
        head = {name: getattr(self, name) for name in names}
        return {**head, "roof": roof, "lines": lines, "limits": limits(self, roof) if roof else []}


def profile(session: Session, n_tokens: int = 1, depth: int = 0, repeats: int = 0) -> Profile:
    """The fastest of `repeats` equal steps (0: 5 of a prompt, 25 of one token), as others may disturb the slower ones.

    What the sequence held is lost. A prompt longer than one step takes (n_ubatch) is cut to it.
    """
    name = "gen" if n_tokens == 1 else "prompt"
    n_tokens = min(n_tokens, session.n_ctx - depth, session.options.n_ubatch)
    session.rewind(0)
    ids = np.arange(depth + n_tokens) % session.n_vocab
    if depth:
        session.eval(ids[:depth])
    session.eval(ids[depth:])  # compiles and warms up
    program, logits = session.program(name), session._programs[name][1]
    traced, times = _traced(program, session.threads_of(name))
    runs = []
    try:
        session._programs[name] = traced, logits
        for _ in range(repeats or (25 if name == "gen" else 5)):
            session.rewind(depth)
            program.words[:, runner.CLAIM] = 0
            start = time.perf_counter()
            session.eval(ids[depth:])
            runs.append((time.perf_counter() - start, times.copy()))
    finally:
        session._programs[name] = program, logits
    seconds, times = min(runs, key=lambda run: run[0])
    starts, ends = times[..., 0] * 10**9 + times[..., 1], times[..., 2] * 10**9 + times[..., 3]
    busy = (ends - starts).mean(1) * 1e-9
    inside = int(ends.max() - starts.min()) * 1e-9
    lines = _lines(program, busy, {TOKENS: n_tokens, OUTPUTS: 1}, depth)
    waiting = max(0.0, inside - float(busy.sum()))
    return Profile(n_tokens, depth, session.threads_of(name), seconds, waiting, max(0.0, seconds - inside), lines)


def _traced(program: Program, n_threads: int) -> tuple[Program, np.ndarray]:
    """The program with each record's kernel called by one that notes the time; times int64 (records, threads, SLOT)."""
    n, i = program.count, np.arange(program.count)
    times = np.zeros((n, n_threads, SLOT), np.int64)
    memory = Memory(8 * runner.RECORD * n)
    words = memory.bytes.view(np.int64).reshape(n, runner.RECORD)
    words[:, runner.KERNEL] = jit.load([TIMED])[TIMED]
    words[:, runner.FLAGS] = program.words[:, runner.FLAGS]
    words[:, runner.ARGS] = program.words[:, runner.KERNEL]
    words[:, runner.ARGS + 1] = program.address + 8 * (i * runner.RECORD + runner.ARGS)
    words[:, runner.ARGS + 2] = times.ctypes.data + i * times.strides[0]
    traced = copy.copy(program)
    traced.address, traced.words, traced._memory = memory.address, words, memory
    return traced, times


def _lines(program: Program, busy: np.ndarray, rows: dict[str, int], depth: int) -> list[Line]:
    found: dict[tuple[str, str], list] = {}
    for record, seconds in zip(program.records, busy, strict=True):
        name = record.op + (f" {record.label.split('.')[-2]}" if record.op.startswith("matmul") else "")
        line = found.setdefault((name, record.type_name), [0, 0.0, 0, 0, {}])
        for i, x in enumerate((1, max(float(seconds), 1e-9), *record.cost.of(rows[record.rows], depth))):
            line[i] += x
        if record.op == "attend":
            line[4] = need.sums(line[4], need.attention_products(record, rows[record.rows], depth))
    return sorted((Line(*key, *values) for key, values in found.items()), key=lambda line: -line.seconds)


# ---- in words
WORDS = {
    "matmul": "matrix products",
    "attend": "attention",
    "quantize": "norms, activations and quantizing the input of matrix products",
    "get_rows": "looking up embeddings",
    "kv_store": "storing keys and values",
    "rope": "rotating queries and keys",
    "deliver": "copying and checking the logits",
}


def limits(p: Profile, roof: dict[str, float], n: int = 3) -> list[str]:
    """The n things that take most of the step's time, each with what it means."""
    groups: dict[str, list[Line]] = {}
    for line in p.lines:
        groups.setdefault(line.name.split()[0], []).append(line)
    found = [(sum(x.seconds for x in lines), _words(op, lines, p, roof)) for op, lines in groups.items()]
    wait = "threads waiting for each other: many short steps, uneven parts, or cores that others use"
    found.append((p.waiting, wait if p.n_threads > 1 else "between the steps of the program"))
    found.append((p.outside, "outside the machine code: Python, starting threads"))
    ranked = sorted(((s, text) for s, text in found if s > 0), key=lambda item: -item[0])
    return [f"{seconds / p.seconds:.0%} of the time ({_time(seconds)}): {text}" for seconds, text in islice(ranked, n)]


def _words(op: str, lines: list[Line], p: Profile, roof: dict[str, float]) -> str:
    """One group of records against the roof that is nearer."""
    text = WORDS.get(op, op) + (f" over {p.depth + p.n_tokens} positions" if op == "attend" else "")
    seconds, flops, n_bytes = (sum(getattr(x, name) for x in lines) for name in ("seconds", "flops", "bytes"))
    group = Line(op, "", 1, seconds, flops, n_bytes, need.sums(*(x.products for x in lines)))
    memory = group.gbps / roof["gbps"] >= group.product_share(roof)
    rate = f"{group.gbps:.1f} GB/s" if memory else f"{group.gflops / 2:.0f} GMAC/s"
    text += f" at {rate}, {group.share(roof):.0%} of what this machine " + ("reads" if memory else "multiplies")
    if op != "matmul":
        return text
    if group.share(roof) >= AT_ROOF:
        return text + (": only fewer bytes (a smaller type) or faster memory help" if memory else ": the int8 peak")
    worst = max(lines, key=lambda x: x.seconds * (1 - min(1.0, x.share(roof))))
    return text + f"; most is lost in {worst.name.split()[-1]} {worst.type} ({worst.share(roof):.0%})"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.0f} us"
