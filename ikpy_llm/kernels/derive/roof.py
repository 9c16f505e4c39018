"""The machine's limits, measured with our own kernels: read bandwidth, and the rate of u8 x s8 products or, for float
weights, of f32 products. `measure` is for everybody; the kernels are compiled by jit."""

from __future__ import annotations

import functools
import math

from .. import jit
from ..quants import get
from .layout import float_panels, gemm_tile

FLOAT = 0  # the code class of float types
ROOF_TILE = {"avx512": (2, 12), "avx2": (2, 4), "neon": (2, 8), "generic": (1, 4)}[jit.target.current().name]
FMA_TILE = float_panels(), gemm_tile()


def roof_read():
    """words: src, n_bytes, sink (4 vectors a thread). Every thread reads its part of the bytes once (four vectors at a
    time, combined so that no load can be left out)."""
    from ..simd import ops

    lanes, n_vectors = ops.LANES, 4
    size = 4 * lanes

    def roof_read(src, n_bytes, sink, ith, nth):
        part = n_bytes // nth // (n_vectors * size) * (n_vectors * size)
        p = src + ith * part
        acc = ops.tile_zeros(ops.I32V, n_vectors)
        for _ in range(part // (n_vectors * size)):
            for i in range(n_vectors):
                ops.prefetch(p + 8192 + i * size)
            acc = acc + ops.tile_load(ops.I32V, n_vectors, p, size)
            p += n_vectors * size
        ops.tile_store(sink + ith * n_vectors * size, size, acc)

    return roof_read


def code_class(type_name: str) -> int:
    """What the compute roof of products with this weight type depends on: FLOAT, or the `top` of roof_dot. AVX2 without
    a dot-product instruction is faster with smaller codes (simd/dots.py), other targets do not tell them apart."""
    q = get(type_name)
    if q.is_float:
        return FLOAT
    if not jit.target.current().pairs16:
        return 255
    return next(top for top in (15, 31, 63, 127, 255) if q.top <= top)


def roof_dot(top: int):
    """words: src (32 KiB that stay in cache), n_dots, sink. A bare matrix product without scales of codes up to top:
    n_dots dot products a thread, in the tile (panels x columns) that reaches the highest rate; gemm needs half of those
    registers for scales."""
    from ..simd import ops
    from .tileops import dot_panels

    n_panels, t = ROOF_TILE
    steps, size, n = 8, 4 * ops.LANES, n_panels * t
    weights = n_panels * steps * size
    dot = dot_panels(n_panels, t, steps, top)

    def roof_dot(src, n_dots, sink, ith, nth):
        acc = ops.tile_zeros(ops.I32V, n)
        for i in range(n_dots // (steps * n)):
            at = src + (i & 7) * weights  # other weights each time: products that repeat could be computed once
            acc = dot(acc, at, steps * size, src + 8 * weights)
        ops.tile_store(sink + ith * n * size, size, acc)

    return roof_dot


def roof_fma():
    """words: src (32 KiB that stay in cache), n_fmas, sink. The same of f32: n_fmas multiply-adds of vectors a thread,
    in the tile of derive.gemm."""
    from ..simd import ops
    from .tileops import fma_splat_panels

    n_panels, t = FMA_TILE
    n, size = n_panels * t, 4 * ops.LANES
    add = fma_splat_panels(n_panels, t)

    def roof_fma(src, n_fmas, sink, ith, nth):
        acc = ops.tile_zeros(ops.F32, n)
        for i in range(n_fmas // (4 * n)):
            at = src + (i & 15) * (4 * n_panels * size)  # loads that repeat would be done once
            for c in range(4):
                acc = add(at + 4 * t * c, at + c * n_panels * size, size, acc)
        ops.tile_store(sink + ith * n * size, size, acc)

    return roof_fma


@functools.cache
def _source():
    """What roof_read reads: several times the last-level cache of one socket."""
    from .bench import allocate

    src = allocate(256 << 20)
    src[:] = 63  # floats of 0.75: no product is small enough to be slow
    return src


def measure(threads: int, seconds: float = 0.4, top: int = 255) -> dict[str, float]:
    """{"gbps": GB/s read from memory, "gmacs": 1e9 u8 x s8 products per second, of codes up to top (code_class), or
    f32 products where top is FLOAT} of `threads` threads; medians of the runs that fit in `seconds` each."""
    import numpy as np

    from .bench import median_time

    lanes, src = jit.target.current().lanes, _source()
    sink = np.zeros(threads * 4096, np.uint8)
    read = median_time(jit.Kernel("derive.roof.roof_read"), [src, src.size, sink], threads, seconds)
    tile, steps, per_lane = (FMA_TILE, 4, 1) if top == FLOAT else (ROOF_TILE, 8, 4)
    kernel = jit.Kernel("derive.roof.roof_fma") if top == FLOAT else jit.Kernel("derive.roof.roof_dot", top=top)
    n = math.prod(tile) * steps
    n_products = 20_000_000 // n * n
    seconds = median_time(kernel, [src, n_products, sink], threads, seconds)
    return {"gbps": src.size / read / 1e9, "gmacs": threads * n_products * per_lane * lanes / seconds / 1e9}
