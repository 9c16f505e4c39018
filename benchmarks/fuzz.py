"""The project's own fuzz: what comes of damaged files, odd settings and hostile texts, over and over.

python benchmarks/fuzz.py [--minutes N] [--jobs J] [--seed S] [--kinds A,B] | --replay KIND:SEED

Cases are those of tests/fuzz_cases.py, in worker processes, kernels on guard pages (tests/guards.py). It ends with 1
where something was found: every finding has a name KIND:SEED, with which --replay runs that case again, in this process
and with everything it has to say. Figures go to results/fuzz.json.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from pathlib import Path

import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fuzz_pool

# How often a kind comes, of those that take milliseconds and those that take tenths of a second.
SHARES = {
    "valid": 2, "sizes": 5, "header": 10, "metadata": 10, "tensor_list": 8, "tensor_data": 6, "not_finite": 4,
    "tokenizer": 8, "options": 6, "products": 4, "grammar": 3, "template": 1, "session_file": 3, "object_file": 4,
    "calls": 4, "command_line": 2, "golden": 1,
}  # fmt: skip


def cases(seed: int, kinds: list[str]):
    """(kind, seed) without end."""
    rng = random.Random(seed)
    for i in itertools.count(seed * 10_000_000):
        yield rng.choices(kinds, [SHARES[k] for k in kinds])[0], i


def replay(name: str) -> int:
    """One case in this process, whose exit code tells."""
    import faulthandler
    import logging
    import tempfile

    import fuzz_cases
    import fuzz_worker

    from ikpy_llm.errors import IkpyError

    kind, _, seed = name.partition(":")
    faulthandler.enable()
    fuzz_worker.limit()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "case"
        place.mkdir()
        try:
            fuzz_cases.CASES[kind](fuzz_cases.Case(kind, int(seed), place))
        except IkpyError as error:
            print(f"refused: {error}")
            fuzz_cases.one_line(error)
        else:
            print("ran")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="cases are the same for the same seed")
    parser.add_argument("--kinds", default=",".join(SHARES), help="some of: " + ", ".join(SHARES))
    parser.add_argument("--replay", metavar="KIND:SEED")
    a = parser.parse_args()
    if a.replay:
        return replay(a.replay)
    kinds, start = a.kinds.split(","), time.monotonic()
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("fuzz")

        def told(result: fuzz_pool.Result, answer: dict) -> None:
            rate = result.n / (time.monotonic() - start)
            text = f"{result.n} cases, {rate:.1f} a second, {len(result.findings)} findings, {answer['kind']}"
            bar.update(task, description=text)
            if answer["outcome"] == "finding":
                console.print(f"{answer['kind']}:{answer['seed']}  {answer['why']}", markup=False, highlight=False)

        result = fuzz_pool.run(cases(a.seed, kinds), a.jobs, 60 * a.minutes, told)
    outcomes = "ran", "refused", "finding"
    rows = {k: {o: result.counts[k, o] for o in outcomes} for k in kinds}
    print(f"{'kind':14}" + "".join(f"{o:>9}" for o in outcomes))
    for k, row in rows.items():
        print(f"{k:14}" + "".join(f"{row[o]:9}" for o in outcomes))
    found = [f"{f['kind']}:{f['seed']}" for f in result.findings]
    print(f"{result.n} cases in {time.monotonic() - start:.0f} s; slowest: {result.slowest}")
    print(f"findings: {', '.join(found) or 'none'}")
    figures = {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "jobs": a.jobs,
        "seed": a.seed,
        "cases": result.n,
        "kinds": rows,
        "findings": found,
    }
    report.write("fuzz", figures)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
