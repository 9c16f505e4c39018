"""The speed beside busy neighbours, as a share of what a fair scheduler would leave.

python benchmarks/pressure.py [-m MODEL.gguf] [--loops 0,1,2,4] [--threads 2,16] [--seconds 2] [--rounds 3]

Each case runs in a process of its own: generation and prompts of 128 tokens with -t threads, beside that many processes
that do nothing but count. On C cores beside L loops, C threads have a fair share of C / (C + L) of the cores (1 alone).
The figures are medians of the rounds, which go through all cases in turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

import report

from ikpy_llm.kernels.run import cores

PROMPT = 128  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("-m", "--model", help="GGUF file (default: the demo model)")
    parser.add_argument("--loops", default="0,1,2,4", help="numbers of busy loops")
    parser.add_argument("--threads", default=f"{cores.default_threads()},16", help="numbers of threads")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="pressure", help="results/NAME.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # measure here, with that many threads
    args = parser.parse_args()
    if args.model is None:
        from ikpy_llm.engine.file.demo_model import demo_model_path

        args.model = str(demo_model_path())
    if args.one is not None:
        print(json.dumps(speeds(args.model, args.one, args.seconds)))
        return
    cases = [(int(t), int(n)) for t in args.threads.split(",") for n in args.loops.split(",")]
    found = {case: [] for case in cases}
    for _ in range(args.rounds):
        for threads, loops in cases:
            run = beside(args, threads, loops)
            found[threads, loops].append(run)
            print(f"-t {threads} beside {loops} loops: tg {run['tg']:.1f} pp {run['pp']:.1f} t/s", file=sys.stderr)
    rows = [row(case, runs, found[cases[0]]) for case, runs in found.items()]
    report.write(args.name, {"model": os.path.basename(args.model), "prompt_tokens": PROMPT, "cases": rows})


def row(case: tuple[int, int], runs: list[dict], alone: list[dict]) -> dict:
    """Medians of one case, printed; `alone` are the runs of the first case."""
    threads, loops = case
    fair = cores.n_logical() / (cores.n_logical() + loops)
    out = {"threads": threads, "busy_loops": loops, "fair_share": fair}
    for name in ("tg", "pp"):
        rate = statistics.median(run[name] for run in runs)
        share = rate / statistics.median(run[name] for run in alone)
        out |= {f"{name}_ts": rate, f"{name}_of_alone": share, f"{name}_of_fair": share / fair}
    print(
        f"-t {threads:2} beside {loops} loops: tg {out['tg_ts']:7.1f} t/s, {out['tg_of_fair']:5.0%} of the fair share; "
        f"pp {out['pp_ts']:7.1f} t/s, {out['pp_of_fair']:5.0%}",
        flush=True,
    )
    return out


def beside(args, threads: int, loops: int) -> dict[str, float]:
    """One measurement in a new process while the loops run."""
    neighbours = [multiprocessing.Process(target=count, daemon=True) for _ in range(loops)]
    for each in neighbours:
        each.start()
    try:
        words = ["-m", args.model, "--one", str(threads), "--seconds", str(args.seconds)]
        done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)
    finally:
        for each in neighbours:
            each.terminate()
            each.join()


def speeds(model: str, threads: int, seconds: float) -> dict[str, float]:
    """Tokens per second of generation and of prompts."""
    from ikpy_llm import models
    from ikpy_llm.engine.file.gguf import open_gguf
    from ikpy_llm.engine.options import Options
    from ikpy_llm.engine.step.session import Session

    file = open_gguf(model)
    with Session(file, models.builder(file.meta, model), Options(n_ctx=512, threads=threads)) as session:
        return {name: rate(session, n, seconds) for name, n in (("tg", 1), ("pp", PROMPT))}


def rate(session, n: int, seconds: float) -> float:
    """Tokens per second in steps of n, in an empty context again and again."""
    session.rewind(0)
    session.eval([1] * n)  # warms up
    done, start, spent = n, time.perf_counter(), 0.0
    while spent < seconds:
        if done % PROMPT == 0:
            session.rewind(0)
        session.eval([1] * n)
        done += n
        spent = time.perf_counter() - start
    return (done - n) / spent


def count() -> None:
    """Keep a core busy."""
    while True:
        pass


if __name__ == "__main__":
    main()
