"""ikpy and ik_llama.cpp on one model, alternating in one run, because machines drift from minute to minute.

python benchmarks/compare_peer.py [-m MODEL.gguf] [-t 2] [--rounds 3]
The peer is what `pip install -e '.[peer]'` brings (an AVX2 build), or with --llama-bench PATH any llama-bench program.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import report

from ikpy_llm.kernels.run import cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("-m", "--model", help="GGUF file (default: the demo model)")
    parser.add_argument("-t", "--threads", type=int, default=cores.n_logical())
    parser.add_argument("-p", "--n-prompt", type=int, default=512)
    parser.add_argument("-n", "--n-gen", type=int, default=128)
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="repetitions per round")
    parser.add_argument("--rounds", type=int, default=3, help="how often the engines alternate")
    parser.add_argument("--peer-rtr", action="store_true", help="let the peer repack its weights too")
    parser.add_argument("--llama-bench", help="a llama-bench program to compare with instead of the wheel")
    parser.add_argument("--name", default="peer", help="results/NAME.json")
    args = parser.parse_args()
    if args.model is None:
        from ikpy_llm.engine.file.demo_model import demo_model_path

        args.model = str(demo_model_path())
    samples: dict[str, dict[str, list[float]]] = {"ikpy": {}, "peer": {}}
    roofs = []
    for _ in range(args.rounds):
        records = run_ikpy(args)
        roofs.append({"gbps": records[0]["roof_gbps"], "gmacs": records[0]["roof_gmacs"]})
        for engine, tests in (("ikpy", samples_of(records)), ("peer", run_peer(args))):
            for test, values in tests.items():
                samples[engine].setdefault(test, []).extend(values)
                print(f"{engine:5} {test:7} {statistics.median(values):9.2f} t/s", flush=True)
    tests = {}
    for test, ours in samples["ikpy"].items():
        medians = {engine: statistics.median(samples[engine][test]) for engine in samples}
        tests[test] = medians | {
            "ratio": medians["ikpy"] / medians["peer"],
            "samples": {e: samples[e][test] for e in samples},
        }
        print(f"{test}: ikpy {medians['ikpy']:.1f}, peer {medians['peer']:.1f} t/s, ratio {tests[test]['ratio']:.2f}")
        assert len(ours) == len(samples["peer"][test])
    peer = (args.llama_bench and Path(args.llama_bench).name) or "ik-llama-cpp-python"
    model = {"model": Path(args.model).name, "threads": args.threads, "peer": peer, "peer_rtr": args.peer_rtr}
    report.write(args.name, model | {"roofs": roofs, "tests": tests})


def run_ikpy(args) -> list[dict]:
    """Records of ikpy-bench for the prompt and the generation test, with the roofs."""
    return run_json([sys.executable, "-m", "ikpy_llm", "bench", "--roofline", *bench_words(args)])


def run_peer(args) -> dict[str, list[float]]:
    """Test name -> tokens per second of every repetition."""
    if args.llama_bench:
        return samples_of(run_json([args.llama_bench, *bench_words(args), "-rtr", str(int(args.peer_rtr))]))
    script = str(Path(__file__).with_name("peer_ik.py"))
    sizes = (args.threads, args.n_prompt, args.n_gen, args.repetitions, 512, int(args.peer_rtr))
    return run_json([sys.executable, script, args.model, *map(str, sizes)])


def bench_words(args) -> list[str]:
    sizes = {"-t": args.threads, "-p": args.n_prompt, "-n": args.n_gen, "-r": args.repetitions}
    return ["-m", args.model, *(str(word) for pair in sizes.items() for word in pair), "-o", "json"]


def samples_of(records: list[dict]) -> dict[str, list[float]]:
    """llama-bench records as test name -> tokens per second."""
    return {f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}": r["samples_ts"] for r in records}


def run_json(command: list[str]):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
