"""A process that runs cases: reads "kind seed" lines, answers each with a line of JSON. Started by fuzz_pool.py.

It says before and after it compiles kernels, which does not count as the case's time. A case that takes longer than
SECONDS ends the process with the stacks of all threads on stderr; the pool then starts another.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path

import fuzz_cases

from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.run import free_memory

SECONDS = 20  # of a case; the slowest that is fine takes 3 on a machine that does nothing else
FREE = 1 << 30  # bytes that the program believes to be free: more is refused in its own words
ADDRESSES = 8 << 30  # bytes of address space, so that what nobody refuses is a MemoryError
MOST_RSS = 2 << 30  # bytes after which the process ends itself between two cases
CASES_EACH = 3000  # after so many, too
DONE = "enough"


class Said(logging.Handler):
    """Log records and what Python could not raise: one line each, or a finding."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.wrong: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.isprintable():
            self.wrong.append(f"log record {text[:300]!r}")

    def unraisable(self, what) -> None:
        self.wrong.append(f"in {getattr(what, 'object', what.exc_type)}: {what.exc_type.__name__}: {what.exc_value}")


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what cases print is none of the answers
    lines = os.fdopen(os.dup(0), "r")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    said, folder = Said(), Path(tempfile.mkdtemp(prefix="ikpy-fuzz-"))
    sys.unraisablehook = threading.excepthook = said.unraisable
    limit()
    jit.keep_compilers = True
    compiled = counted_compiling(out)
    try:
        for i, line in enumerate(lines):
            kind, seed = line.split()
            answer = judge(kind, int(seed), folder, said, compiled)
            enough = i + 1 >= CASES_EACH or rss() > MOST_RSS
            print(json.dumps({**answer, "more": not enough}), file=out)
            if enough:
                return
    finally:
        jit.release_compilers()
        shutil.rmtree(folder, ignore_errors=True)


def limit() -> None:
    free_memory.available = lambda *_: FREE
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")


def counted_compiling(out) -> list[int]:
    """Have compiling announced; a list whose length is how often it was done."""
    compile_missing, done = jit.compile_missing, []

    def compile_and_say(*args, **kwargs):
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"compiling": True}), file=out)
        try:
            return compile_missing(*args, **kwargs)
        finally:
            done.append(1)
            print(json.dumps({"compiling": False}), file=out)
            faulthandler.dump_traceback_later(SECONDS, exit=True)

    jit.compile_missing = compile_and_say
    return done


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def judge(kind: str, seed: int, folder: Path, said: Said, compiled: list[int]) -> dict:
    """Run a case; what came of it: ran, refused or a finding, and why."""
    log = logging.getLogger("ikpy")
    log.handlers[:], log.propagate = [said], False
    log.setLevel(logging.INFO)
    said.wrong.clear()
    place, before, n_compiled, start = folder / "case", held(), len(compiled), time.perf_counter()
    place.mkdir()
    is_first = kind not in _seen
    _seen.add(kind)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    outcome, why = "ran", ""
    try:
        fuzz_cases.CASES[kind](fuzz_cases.Case(kind, seed, place))
    except IkpyError as error:
        outcome, why = "refused", str(error).replace(str(place), "")
        try:
            fuzz_cases.one_line(error)
        except fuzz_cases.Wrong as wrong:
            outcome, why = "finding", str(wrong)
    except fuzz_cases.Wrong as wrong:
        outcome, why = "finding", str(wrong)
    except BaseException:
        outcome, why = "finding", traceback.format_exc(limit=-8)
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(place, ignore_errors=True)
    after = held()
    if after > before:  # threads that have ended a moment ago
        time.sleep(0.05)
        after = held()
    if said.wrong:
        outcome, why = "finding", "; ".join(said.wrong[:3])
    elif any(b > a for a, b in zip(before, after, strict=True)) and len(compiled) == n_compiled and not is_first:
        outcome, why = "finding", f"descriptors, threads: {before} before, {after} after"
    seconds = round(time.perf_counter() - start, 3)
    return {"kind": kind, "seed": seed, "outcome": outcome, "why": why, "seconds": seconds}


_seen: set[str] = set()

if __name__ == "__main__":
    faulthandler.enable()
    main()
