"""Kernels against this machine's roofs: every quant type x kernel x width, in one run with the roofs.

python benchmarks/kernels.py [--types Q4_0,Q4_K] [--kernels gemv,gemm] [--threads 2]
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import report

from ikpy_llm.kernels import quants
from ikpy_llm.kernels.derive import bench, layout, roof
from ikpy_llm.kernels.quants import table
from ikpy_llm.kernels.run import cores

# Kernel -> widths n (columns of activations). GEMV is bound by bytes, GEMM by the int8 rate.
WIDTHS = {"gemv": (1, 4), "gemm": (32, 512)}
# GEMV streams as many bytes as the roof does, several times the last-level cache; GEMM uses a layer of an 8B model.
GEMV_BYTES, K, GEMM_ROWS = 256 << 20, 4096, 4096


def main() -> None:
    names = [name for name in quants.names() if table.by_name(name).id >= 0]  # interleaved ones run as these
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--types", default=",".join(names), help="comma list (default: all)")
    parser.add_argument("--kernels", default=",".join(WIDTHS), help="comma list (default: all)")
    parser.add_argument("--threads", type=int, default=cores.n_logical())
    parser.add_argument("--name", default="kernels", help="results/NAME.json")
    args = parser.parse_args()
    roofs, rows = [], []
    print(f"{'type':9} {'kernel':6} {'n':>4} {'us':>10} {'GB/s':>7} {'GMAC/s':>8} {'roof':>6}")
    for kernel, name in itertools.product(args.kernels.split(","), args.types.split(",")):
        for n in WIDTHS[kernel]:
            rows.append(measure(kernel, name, n, args.threads, roofs))
    median = {key: statistics.median(r[key] for r in roofs) for key in roofs[0]}
    report.write(args.name, {"threads": args.threads, "roof": median, "roofs": roofs, "rows": rows})


def measure(kernel: str, name: str, n: int, threads: int, roofs: list[dict[str, float]]) -> dict:
    """One line of the table: median time, rates and the share of the roof that bounds the kernel.

    Machines drift within seconds: the roofs are measured again after each kernel, and it is compared with the mean of
    the ones before and after it.
    """
    rows, k = GEMV_BYTES // layout.panel_bytes(name, K) * layout.width() if kernel == "gemv" else GEMM_ROWS, K
    codes = roof.code_class(name)
    roofs.append(roof.measure(threads, 0.2, codes))
    run = bench.run(kernel, name, n, rows, k, threads)
    roofs.append(roof.measure(threads, 0.2, codes))
    top = {key: (roofs[-2][key] + roofs[-1][key]) / 2 for key in roofs[-1]}
    gbps, gmacs = run["bytes"] / run["seconds"] / 1e9, run["macs"] / run["seconds"] / 1e9
    share = max(gbps / top["gbps"], gmacs / top["gmacs"])
    print(f"{name:9} {kernel:6} {n:4} {run['seconds'] * 1e6:10.1f} {gbps:7.1f} {gmacs:8.1f} {share:6.1%}", flush=True)
    shape = {"type": name, "kernel": kernel, "n": n, "rows": rows, "k": k}
    return shape | {"seconds": run["seconds"], "gbps": gbps, "gmacs": gmacs, "roof": top, "roof_share": share}


if __name__ == "__main__":
    main()
