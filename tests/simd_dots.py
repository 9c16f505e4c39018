"""Cases of dot products, single and in runs; simd_cases.py runs them."""

import numpy as np
from simd_harness import CASES, RNG, SLOT, case, values

from ikpy_llm.kernels import simd
from ikpy_llm.kernels.derive.tileops import codes_to_store, dot_panels
from ikpy_llm.kernels.simd import core
from ikpy_llm.kernels.simd.dots import Dots

LANES, I32V, I16V, U8 = simd.LANES, simd.I32V, simd.I16V, simd.U8


def dot(x, y, step):
    return (x.astype("i8") * y).reshape(-1, step).sum(1)


def _dots(lanes):
    u8, s8, acc = core.Vec("u8", lanes), core.Vec("i8", lanes), core.Vec("i32", lanes // 4)

    def kernel(a, x, y, small, out, ith, nth):
        c, u, s = simd.load(acc, a), simd.load(u8, x), simd.load(s8, y)
        simd.store(out, simd.dot4(c, u, s))
        simd.store(out + SLOT, simd.dot4_small(c, simd.load(u8, small), s))
        simd.store(out + 2 * SLOT, simd.dot4_centred(c, u, simd.maximum(s, simd.splat(s8, -127))))

    a, x, y = values(acc) >> 4, values(u8), values(s8)
    x[:8], y[:8] = 255, [-128, -128, -128, -128, 127, 127, 127, 127]  # 16-bit sums of pairs would saturate
    small = x & 127
    y[lanes - 4 :] = -127
    pairs = (x, y), (small, y), (x - np.int64(128), np.maximum(y, -127))
    return kernel, (a, x, y, small), [(a + dot(u, s, 4)).astype("i4") for u, s in pairs]


for _lanes in sorted({16, 32, 4 * LANES}):
    CASES[f"dot4_{_lanes}"] = lambda n=_lanes: _dots(n)


def _dot_chain(top, m, n_columns=2):
    """m products in a row for codes up to top; every second row has the largest codes, columns the largest factors."""
    size, add, kept = 4 * LANES, dot_panels(1, n_columns, m, top), codes_to_store(top)
    room = simd.stack(8 * size)

    def kernel(a, w, x, out, ith, nth):
        acc = simd.tile_load(I32V, n_columns, a, size)
        codes = room()
        simd.tile_store(codes, size, kept(simd.tile_load(U8, 8, w, size)))
        simd.tile_store(out, SLOT, add(acc, codes, 0, x))

    a, w = values(I32V, n_columns) >> 8, RNG.integers(0, top, (8, LANES, 4), np.uint8, endpoint=True)
    x = RNG.integers(-127, 127, (m, n_columns, 4), np.int8, endpoint=True)
    w[:, ::2], x[: m // 2, 0], x[m // 2 :, 0] = top, -127, 127
    w[:, 2], x[:, 1] = top, (-127 if m == 8 else 127)
    levels = w[:m].astype(int) - 128 * Dots(top).centred
    want = np.einsum("vrk,vck->cr", levels, x.astype(int)) + a.reshape(n_columns, LANES)
    return kernel, (a, w, x), want.astype("i4")


for _top, _m in [(1, 8), (15, 8), (15, 4), (18, 8), (31, 8), (63, 8), (86, 4), (127, 8), (128, 8), (255, 8), (255, 4)]:
    CASES[f"dot_chain_{_top}_{_m}"] = lambda top=_top, m=_m: _dot_chain(top, m)


@case
def dot_of_words():
    def kernel(a, x, y, out, ith, nth):
        simd.store(out, simd.dot2(simd.load(I32V, a), simd.load(I16V, x), simd.load(I16V, y)))

    a, x, y = values(I32V) >> 4, values(I16V), values(I16V) >> 3
    return kernel, (a, x, y), ((a + dot(x, y, 2)).astype("i4"),)
