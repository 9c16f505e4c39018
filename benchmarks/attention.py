"""Attention at depth against this machine's roofs: types of the KV cache x head shapes, results/attention.json.

python benchmarks/attention.py [--types f16,q8_0,q8_0/q4_0] [--shapes smollm2] [--depths 2048,8192] [--threads 2]

Generation: one token in as many layers as exceed the last-level cache. Prompts (--prompt N): N tokens after the depth.
Shares of what the machine could do, measured beside each line: of read bandwidth; of the rates of the products that
scores and sums over values are made of (derive/roof.py); and of the one that binds.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics

import numpy as np
import report

from ikpy_llm.kernels.attention import layout
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.derive import bench, roof
from ikpy_llm.kernels.run import cores
from ikpy_llm.kernels.run.memory import Memory

SHAPES = {
    "smollm2": (9, 3, 64),
    "qwen05b": (14, 2, 64),
    "qwen15b": (12, 2, 128),
    "8b": (32, 8, 128),
    "gemma3": (4, 1, 256),
}
STREAMED = 160 << 20  # bytes of cache that one run of the generation reads at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--types", default="f16,q8_0,q8_0/q4_0,q4_0", help="comma list of K or K/V")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--depths", default="2048,8192,16384")
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a prompt; 0: generation")
    parser.add_argument("--threads", type=int, default=cores.n_logical())
    parser.add_argument("--repeat", type=int, default=5, help="times, each between two looks at the roofs")
    parser.add_argument("--seconds", type=float, default=0.15)
    parser.add_argument("--name", default="attention", help="results/NAME.json; empty: none")
    a = parser.parse_args()
    rows = []
    for types in a.types.split(","):
        k, v = types.split("/") if "/" in types else (types, types)
        for shape in a.shapes.split(","):
            for depth in map(int, a.depths.split(",")):
                rows.append(measure(k, v, shape, depth, a.prompt, a.threads, a.seconds, a.repeat))
                r = rows[-1]
                print(
                    f"{types:12} {shape:8} {depth:6} {r['seconds'] * 1e6:9.1f} us {r['gbps']:6.2f} GB/s"
                    f" {r['gmacs']:6.1f} GMAC/s; share of bytes {r['share_bytes']:.0%}, products"
                    f" {r['share_products']:.0%}, what binds {r['share']:.0%}",
                    flush=True,
                )
    if a.name:
        report.write(a.name, {"threads": a.threads, "rows": rows})


def roofs(k: str, v: str, threads: int) -> dict[str, float]:
    """Read bandwidth, and multiply-adds of scores and of sums over values, 1e9 a second."""
    keys, values = roof.attention_classes(k, v)
    found = roof.measure(threads, 0.05, keys, [values])
    return {"gbps": found["gbps"], "keys": found["gmacs"], "values": found[roof.rate_name(values)]}


def measure(k: str, v: str, shape: str, depth: int, prompt: int, threads: int, seconds: float, repeat: int) -> dict:
    """One line of the table: medians of the time of a layer, and of its shares of the roofs right before and after."""
    (n_head, n_head_kv, dim), n = SHAPES[shape], prompt or 1
    n_cells = -(-(depth + n) // 256) * 256
    sizes = [layout.cache_bytes(name, n_head_kv, n_cells, dim) for name in (k, v)]
    n_layers = 1 if prompt else -(-STREAMED // sum(sizes))
    few = layout.narrow_tile(n_head // n_head_kv)  # as the engine asks
    spec = jit.Kernel("attention.flash.attend", **few, **given(k_dim=dim, v_dim=dim, k_type=k, v_type=v))
    fn = jit.function(jit.load([spec])[spec])
    state, rng = np.array([n, depth, n, 0], np.int64), np.random.default_rng(0)
    q, layers, held = rng.standard_normal((n, n_head, dim)).astype(np.float32), [], []
    for _ in range(n_layers):
        caches = [Memory(size).bytes for size in sizes]
        for c in caches:
            c[:] = 17
        y, counters = np.zeros_like(q), np.zeros(layout.n_counters(n_head), np.int64)
        scratch = np.zeros(layout.scratch_bytes(n, n_head, n_cells, dim), np.uint8)
        words = q, *caches, y, n_head, n_head_kv, 0, n_head, n_cells, 0, dim**-0.5, 0.0, scratch, counters, state
        held.append(words)
        layers.append(jit.pack_words(words))
    addresses = [ctypes.addressof(words) for words in layers]
    read, macs = sum(sizes) * (depth + n) / n_cells / 1e9, n_head * n * (depth + (n + 1) / 2) * dim / 1e9  # of each
    runs, before = [], roofs(k, v, threads)
    for _ in range(repeat):
        taken = bench.median_run(fn, addresses, threads, seconds) / len(addresses)  # layers share nothing
        after = roofs(k, v, threads)
        top = {key: (before[key] + after[key]) / 2 for key in after}
        bounds = read / top["gbps"], macs / top["keys"] + macs / top["values"]
        run = {"seconds": taken, "gbps": read / taken, "gmacs": 2 * macs / taken}
        run |= {"share_bytes": bounds[0] / taken, "share_products": bounds[1] / taken, "share": max(bounds) / taken}
        runs.append(run | {f"roof_{key}": x for key, x in top.items()})
        before = after
    row = {"k": k, "v": v, "shape": shape, "depth": depth, "prompt": prompt}
    row |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return row | {"shares": [run["share"] for run in runs]}


def given(**words) -> dict:
    return {name: value for name, value in words.items() if value != "f16"}


if __name__ == "__main__":
    main()
