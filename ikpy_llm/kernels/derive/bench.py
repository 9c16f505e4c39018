"""Timing of single kernels on generated data: what benchmarks/kernels.py and the roofline use. Imports no Numba."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time

import numpy as np

from ikpy_llm import system

from ..compiler import jit
from ..quants import get
from ..run.memory import Memory
from .layout import ActsLayout, flavour, gemm_scratch_bytes, gemm_tile, weight_bytes


def median_run(fn, addresses: list[int], threads: int, seconds: float) -> float:
    """Median seconds of calling fn on `threads` threads with each block of words in turn; the first round is warm-up.
    Threads meet only before and after a round, so calls of one round must not depend on each other."""
    times, barrier, go_on = [], threading.Barrier(threads), True

    def round_after_round(ith: int):
        nonlocal go_on
        end = time.perf_counter() + seconds
        while True:
            barrier.wait()
            if not go_on:
                return
            start = time.perf_counter()
            for address in addresses:
                fn(address, ith, threads)
            barrier.wait()
            if ith == 0:
                times.append(time.perf_counter() - start)
                go_on = time.perf_counter() < end or len(times) < 4

    def work(ith: int):
        with contextlib.suppress(threading.BrokenBarrierError):  # the caller has been stopped
            round_after_round(ith)

    others = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(1, threads)]
    try:
        for t in others:
            system.start(t, f"{threads} threads of a measurement")
        round_after_round(0)
    except BaseException:  # Ctrl-C
        barrier.abort()
        raise
    finally:  # the words are the caller's, so nobody may read them later
        for t in filter(threading.Thread.is_alive, others):
            t.join()
    import statistics  # 4 ms of every start

    return statistics.median(times[1:])


def median_time(spec: jit.Kernel, words: list, threads: int, seconds: float = 0.3) -> float:
    """Median run of a kernel on `threads` threads, in seconds; the first run is warm-up."""
    args = jit.pack_words(words)
    return median_run(jit.function(jit.load([spec])[spec]), [ctypes.addressof(args)], threads, seconds)


def acts(x: np.ndarray, t: int, types: list[str]) -> tuple[ActsLayout, np.ndarray]:
    """f32 rows as the quantized activations that the given weight types read."""
    flavours = tuple(dict.fromkeys(f for f in map(flavour, types) if f))
    layout = ActsLayout(t, flavours, is_float=not flavours)
    n, k = x.shape
    out = Memory(layout.n_bytes(n, k)).bytes
    state = np.array([n, 0, 0, 0], np.int64)
    words = [zero * 256 + sub for zero, sub in layout.stored] + [0, 0, 0]
    jit.call(
        jit.Kernel("derive.quantize", source="plain", t=t, is_float=layout.is_float),
        np.ascontiguousarray(x, np.float32),
        0,
        out,
        k,
        k,
        layout.stride,
        *words[:3],
        0.0,
        state,
    )
    return layout, out


def run(kernel: str, type: str, n: int, rows: int, k: int, threads: int, seconds: float = 0.5) -> dict[str, float]:
    """Time derive.gemv (n <= 8) or derive.gemm on a rows x k matrix of generated panels. {"seconds": median,
    "bytes": weight bytes, "macs": n * rows * k}."""
    size = weight_bytes(type, rows, k)
    weights = Memory(size).bytes
    weights[:] = 17 if not get(type).is_float else 0
    rng = np.random.default_rng(0)
    layout, a = acts(rng.standard_normal((n, k)).astype(np.float32), n if kernel == "gemv" else gemm_tile(), [type])
    f = flavour(type)
    start, y = layout.start(f) if f else 0, np.zeros((n, rows), np.float32)
    if kernel == "gemv":
        spec, words = (
            jit.Kernel("derive.gemv", type=type, n=n),
            [weights, a, layout.stride, start, y, rows, rows, k, 0, 0, 0],
        )
    else:
        scratch = Memory(threads * gemm_scratch_bytes(n)).bytes
        state = np.array([n, 0, 0, 0], np.int64)
        spec = jit.Kernel("derive.gemm", type=type)
        words = [weights, 0, a, layout.stride, start, y, rows, rows, k, 0, 0, scratch, gemm_scratch_bytes(n), state, 0]
    return {"seconds": median_time(spec, words, threads, seconds), "bytes": size, "macs": n * rows * k}
