"""Start-up, memory and a busy neighbour: what a user meets besides the speed.

python benchmarks/startup.py [-m MODEL.gguf] [-t 2] [--runs 15] [--skip cold]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

from ikpy_llm.kernels.run import cores

PROMPT = "The capital of France is"
# Where Python may not store what it compiled, every start compiles all sources again: 0.1 s that no user has.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("-m", "--model", help="GGUF file (default: the demo model)")
    parser.add_argument("-t", "--threads", type=int, default=cores.n_logical())
    parser.add_argument("--runs", type=int, default=15, help="warm starts")
    parser.add_argument("--skip", default="", help="comma list of warm, cold, neighbour")
    parser.add_argument("--name", default="startup", help="results/NAME.json")
    args = parser.parse_args()
    if args.model is None:
        from ikpy_llm.engine.file.demo_model import demo_model_path

        args.model = str(demo_model_path())
    figures: dict[str, object] = {"model": Path(args.model).name, "threads": args.threads}
    for name, measure in (("warm", warm), ("cold", cold), ("neighbour", neighbour)):
        if name not in args.skip.split(","):
            figures[name] = measure(args)
            print(name, json.dumps(figures[name]), flush=True)
    report.write(args.name, figures)


def start(args, env: dict[str, str] | None = None, n: int = 1) -> tuple[float, float, float]:
    """(seconds to the first byte of new text, seconds to the end, peak resident MB) of one ikpy-run process."""
    words = [
        "-m",
        args.model,
        "-t",
        str(args.threads),
        "-p",
        PROMPT,
        "-n",
        str(n),
        "--temp",
        "0",
        "--no-display-prompt",
    ]
    with tempfile.TemporaryFile() as messages:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "ikpy_llm", "run", *words],
            stdout=subprocess.PIPE,
            stderr=messages,
            env={**ENV, **(env or {})},
        )
        first = process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status or not first:
            messages.seek(0)
            raise SystemExit(f"ikpy-run ended with status {status}: {messages.read().decode()[-500:]}")
    return seconds, time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e6  # ru_maxrss is in KiB on Linux


def warm(args) -> dict:
    """Median over many starts; the first one, which fills the object cache and the page cache, does not count."""
    start(args)
    runs = [start(args) for _ in range(args.runs)]
    first, end, memory = zip(*runs, strict=True)
    longer = start(args, n=128)
    return {
        "first_token_s": statistics.median(first),
        "first_token_s_all": first,
        "process_s": statistics.median(end),
        "peak_rss_mb": max(memory),
        "peak_rss_mb_128_tokens": longer[2],
        "model_mb": os.path.getsize(args.model) / 1e6,
    }


def cold(args) -> dict:
    """One start with an empty object cache: every kernel is compiled."""
    with tempfile.TemporaryDirectory() as folder:
        first, end, memory = start(args, {"IKPY_CACHE": folder})
        files = [f for f in Path(folder).rglob("*") if f.is_file()]
        return {"first_token_s": first, "process_s": end, "peak_rss_mb": memory, "kernels": len(files)}


def neighbour(args) -> dict:
    """Generation alone, and while another process keeps one core busy: medians of three alternating rounds."""
    alone, crowded = [], []
    for _ in range(3):
        alone.append(generation_speed(args))
        busy = multiprocessing.Process(target=spin, args=(max(os.sched_getaffinity(0)),), daemon=True)
        busy.start()
        try:
            crowded.append(generation_speed(args))
        finally:
            busy.terminate()
            busy.join()
    alone_ts, crowded_ts = statistics.median(alone), statistics.median(crowded)
    return {"alone_ts": alone_ts, "crowded_ts": crowded_ts, "share": crowded_ts / alone_ts}


def generation_speed(args) -> float:
    """Tokens per second of ikpy-bench tg64."""
    words = ["-m", args.model, "-t", str(args.threads), "-p", "0", "-n", "64", "-r", "3", "-o", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "ikpy_llm", "bench", *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)[0]["avg_ts"]


def spin(core: int) -> None:
    """Keep one core busy."""
    os.sched_setaffinity(0, {core})
    while True:
        pass


if __name__ == "__main__":
    main()
