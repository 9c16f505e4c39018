"""Runs cases in worker processes (fuzz_worker.py) and gathers what they say; used by test_fuzz.py, benchmarks/fuzz.py.

A case is known by its kind and seed, so a worker that dies in the middle of one has said which.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

WORKER = Path(__file__).parent / "fuzz_worker.py"
SECONDS = 90  # without an answer, after which a worker is killed: it ends itself before
KEPT = ("IKPY_CACHE", "IKPY_TARGET", "IKPY_GOLDEN")  # what a worker sees of our environment
COMPILING = 600  # the same while it compiles


@dataclass
class Result:
    """What came of all cases: how many of each kind and outcome, and every finding."""

    counts: Counter = field(default_factory=Counter)  # (kind, outcome) -> cases
    findings: list[dict] = field(default_factory=list)
    slowest: dict = field(default_factory=lambda: {"seconds": 0.0})

    def add(self, answer: dict) -> None:
        self.counts[answer["kind"], answer["outcome"]] += 1
        if answer["outcome"] == "finding":
            self.findings.append(answer)
        if answer.get("seconds", 0) > self.slowest["seconds"]:
            self.slowest = {k: answer[k] for k in ("kind", "seed", "seconds")}

    @property
    def n(self) -> int:
        return self.counts.total()


class Worker:
    """One process; a new one after each death."""

    def __init__(self):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `run`)
        self.process: subprocess.Popen | None = None

    def _start(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("IKPY_") or k in KEPT}
        here = str(Path(__file__).parent), str(Path(__file__).parents[1])
        env["PYTHONPATH"] = os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.log.seek(0)
        self.log.truncate()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)], env=env, text=True, start_new_session=True, **pipes
        )

    def run(self, kind: str, seed: int) -> dict:
        """What came of one case."""
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(f"{kind} {seed}\n")
            self.process.stdin.flush()
            answer = self._answer()
        except OSError:
            answer = None
        if answer is None:
            code = self._end()
            self.log.seek(0)
            tail = self.log.read().decode("utf-8", "replace")[-6000:]
            name = signal.Signals(-code).name if code < 0 else f"code {code}"
            answer = {"kind": kind, "seed": seed, "outcome": "finding", "why": f"ended with {name}\n{tail}"}
        elif not answer.pop("more"):
            self.close()
        return answer

    def _answer(self) -> dict | None:
        limit = SECONDS
        while True:
            timer = threading.Timer(limit, self.process.kill)
            timer.start()
            try:
                line = self.process.stdout.readline()
            finally:
                timer.cancel()
            if not line:
                return None
            answer = json.loads(line)
            if "compiling" not in answer:
                return answer
            limit = COMPILING if answer["compiling"] else SECONDS

    def _end(self) -> int:
        process, self.process = self.process, None
        process.stdin.close()
        try:
            code = process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self._end()


def run(
    cases: Iterable[tuple[str, int]],
    jobs: int = 1,
    seconds: float = 0,
    told: Callable[[Result, dict], None] | None = None,
) -> Result:
    """Run (kind, seed) after (kind, seed) for at most so many seconds, 0 = all of them, or until Ctrl-C; told(result,
    answer) after each.
    """
    result, lock, source, end = Result(), threading.Lock(), iter(cases), time.monotonic() + seconds
    stop = threading.Event()

    def serve() -> None:
        worker = Worker()
        try:
            while not stop.is_set() and (not seconds or time.monotonic() < end):
                with lock:
                    case = next(source, None)
                if case is None:
                    return
                answer = worker.run(*case)
                with lock:
                    result.add(answer)
                    if told is not None:
                        told(result, answer)
        finally:
            worker.close()
            worker.log.close()

    threads = [threading.Thread(target=serve) for _ in range(jobs)]
    for t in threads:
        t.start()
    try:
        for t in threads:
            t.join()
    except KeyboardInterrupt:  # the cases that run end, no others begin
        stop.set()
        for t in threads:
            t.join()
    return result
