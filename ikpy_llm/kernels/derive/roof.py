"""The machine's limits, measured with our own kernels: read bandwidth, and the rates of u8 x s8, f32 and 16-bit
products. `measure` is for everybody; the kernels are compiled by jit.

A class of products is FLOAT, WORDS (16-bit weights with codes) or the largest code of u8 x s8 products."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

from ..compiler import jit
from ..kv.types import kv_type
from ..quants import get
from .layout import float_panels, gemm_tile

FLOAT, WORDS = 0, 65535
ROOF_TILE = {"avx512": (2, 12), "avx2": (2, 4), "neon": (2, 8), "generic": (1, 4)}[jit.target.current().name]
NARROW_TILE = 1, 6  # of products that are widened one by one (AVX2, codes up to 127): 1.3 times as fast as 2 x 4
FMA_TILE = float_panels(), gemm_tile()
WORD_TILE = 2, 6  # as attention's over values


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
    return FLOAT if q.is_float else _class_of(q.top)


def _class_of(most: int) -> int:
    """The class of u8 x s8 products with codes up to `most`."""
    if not jit.target.current().pairs16:
        return 255
    return next(top for top in (15, 31, 63, 127, 255) if most <= top)


def attention_classes(k_type: str, v_type: str) -> tuple[int, int]:
    """Classes of the products of attention (attention/int_scores.py, int_values.py) with keys and values of these
    types: f32, or of codes with 8-bit queries and with 16-bit weights. AVX2 without a dot-product instruction bounds
    queries where codes exceed 127, which costs as much as codes up to there."""
    k, v = kv_type(k_type), kv_type(v_type)
    return FLOAT if k.is_plain else _class_of(min(k.top, 127)), FLOAT if v.is_plain else WORDS


def rate_name(kind: int) -> str:
    """What `measure` calls the rate of a class of products."""
    return {FLOAT: "gmacs_f32", WORDS: "gmacs_s16"}.get(kind) or f"gmacs_u{kind.bit_length()}"


def dot_tile(top: int) -> tuple[int, int]:
    """Panels x columns with which roof_dot is fastest."""
    return NARROW_TILE if top == 127 and jit.target.current().pairs16 else ROOF_TILE


def roof_dot(top: int):
    """words: src (32 KiB that stay in cache), n_dots, sink. A bare matrix product without scales of codes up to top:
    n_dots dot products a thread, in the tile (panels x columns) that reaches the highest rate; gemm needs half of those
    registers for scales."""
    from ..simd import ops
    from .tileops import dot_panels

    n_panels, t = dot_tile(top)
    steps, size, n = 8, 4 * ops.LANES, n_panels * t
    weights = n_panels * steps * size
    dot = dot_panels(n_panels, t, steps, top)

    def roof_dot(src, n_dots, sink, ith, nth):
        acc = ops.tile_zeros(ops.I32V, n)
        for i in range(n_dots // (steps * n)):
            at = src + (i & 7) * weights  # other weights each time: products that repeat could be computed once
            acc = dot(acc, at, steps * size, src + 16384 + (i & 1) * (4 * steps * t))
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


def roof_words():
    """words: src (32 KiB that stay in cache), n_dots, sink. The same of pairs of int16, where no u8 x s8 product of a
    16-bit weight is faster: n_dots products of vectors a thread."""
    from ..simd import ops
    from .tileops import dot2_panels

    n_panels, t = WORD_TILE
    n, size = n_panels * t, 4 * ops.LANES
    add = dot2_panels(n_panels, t)

    def roof_words(src, n_dots, sink, ith, nth):
        acc = ops.tile_zeros(ops.I32V, n)
        for i in range(n_dots // (8 * n)):
            at = src + (i & 7) * (8 * n_panels * size)
            for c in range(8):
                acc = add(acc, at + c * n_panels * size, size, src + 16384 + 4 * t * c)
        ops.tile_store(sink + ith * n * size, size, acc)

    return roof_words


@functools.cache
def _source():
    """What roof_read reads: several times the last-level cache of one socket."""
    from ..run.memory import Memory

    src = Memory(256 << 20).bytes
    src[:] = 63  # floats of 0.75: no product is small enough to be slow
    return src


def measure(threads: int, seconds: float = 0.4, top: int = 255, others: Iterable[int] = ()) -> dict[str, float]:
    """{"gbps": GB/s read from memory, "gmacs": 1e9 products per second of class `top`} of `threads` threads, and the
    rates of `others` by rate_name; medians of the runs that fit in `seconds` each."""
    import numpy as np

    from .bench import median_time

    src, sink = _source(), np.zeros(threads * 4096, np.uint8)
    read = median_time(jit.Kernel("derive.roof.roof_read"), [src, src.size, sink], threads, seconds)
    rates = {kind: _products(kind, threads, seconds, src, sink) for kind in dict.fromkeys((top, *others))}
    named = {rate_name(kind): rates[kind] for kind in dict.fromkeys(others)}
    return {"gbps": src.size / read / 1e9, "gmacs": rates[top], **named}


def _products(kind: int, threads: int, seconds: float, src, sink) -> float:
    """1e9 products of a class per second."""
    from .bench import median_time

    target = jit.target.current()
    if kind == WORDS and not target.pairs16:  # a byte and the rest of it, by a product each
        return _products(_class_of(255), threads, seconds, src, sink) / 2
    if kind == FLOAT:
        kernel, tile, steps, per_lane = jit.Kernel("derive.roof.roof_fma"), FMA_TILE, 4, 1
    elif kind == WORDS:
        kernel, tile, steps, per_lane = jit.Kernel("derive.roof.roof_words"), WORD_TILE, 8, 2
    else:
        kernel, tile, steps, per_lane = jit.Kernel("derive.roof.roof_dot", top=kind), dot_tile(kind), 8, 4
    n = math.prod(tile) * steps
    n_products = 20_000_000 // n * n
    taken = median_time(kernel, [src, n_products, sink], threads, seconds)
    return threads * n_products * per_lane * target.lanes / taken / 1e9
