"""Experts and latents: ikpy-bench of the synthetic mixture and of the one with latent attention, results/moe_mla.json.

python benchmarks/moe_mla.py [--types Q4_K,Q8_0,IQ4_XS] [--kv f16,q8_0] [--depths 0,2048,8192] [--repeat 5]

Prints the table of docs/speed.md: tokens a second and two shares, of the read or dot roof and of the bound that counts
attention's products too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import report

SHAPES = ("mla", "moe")
KEPT = ("model_type", "type_k", "type_v", "test", "n_depth", "avg_ts", "stddev_ts", "gbps", "gmacs", "roof_gbps")
KEPT += ("roof_gmacs", "roof_share", "bound_share", "samples_ts", "samples_share", "samples_bound_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--types", default="Q4_K,Q8_0,IQ4_XS")
    parser.add_argument("--kv", default="f16,q8_0")
    parser.add_argument("--depths", default="0,2048,8192")
    parser.add_argument("--repeat", type=int, default=5)
    a = parser.parse_args()
    types, kinds, depths, rows = a.types.split(","), a.kv.split(","), a.depths.split(","), []
    deep = [f"tg32 {kv}" if d == "0" else f"{kv} at {d}" for kv in kinds for d in depths]
    print("| model | pp512 | " + " | ".join(deep) + " |")
    print("| --- |" + " ---: |" * (1 + len(deep)))
    for shape in SHAPES:
        for name in types:
            found = bench(shape, name, a.repeat, "-p", "512", "-n", "0")
            for kv in kinds:
                cache = ["-ctk", kv] + ["-ctv", kv] * (shape == "moe")
                found += bench(shape, name, a.repeat, "-p", "0", "-n", "32", "-d", a.depths, *cache)
            cells = (f"{r['avg_ts']:.0f} ({r['roof_share']:.0%}, {r['bound_share']:.0%})" for r in found)
            print(f"| {shape} {name} | " + " | ".join(cells) + " |", flush=True)
            rows += found
    report.write("moe_mla", {"rows": rows})


def bench(shape: str, name: str, repeat: int, *words: str) -> list[dict]:
    command = [sys.executable, "-m", "ikpy_llm", "bench", "--synthetic", shape, "--type", name, "-r", str(repeat)]
    done = subprocess.run([*command, *words, "--roofline", "-o", "jsonl"], capture_output=True, text=True, check=True)
    return [{name: row[name] for name in KEPT} for row in map(json.loads, done.stdout.splitlines())]


if __name__ == "__main__":
    main()
