"""Attention kernels against float64 NumPy. Prompt, single tokens and any number of threads agree bit for bit;
nothing is written outside.
"""

import numpy as np
import pytest

from ikpy_llm.kernels import simd
from ikpy_llm.kernels.attention.layout import cache_bytes, n_counters, narrow_tile, scratch_bytes
from ikpy_llm.kernels.compiler.jit import Kernel, call

LANES = simd.LANES
MARGIN = 64


class Heads:
    """Random q, k, v of a sequence and caches around which nothing may be written. Cells never stored hold NaN."""

    def __init__(self, n_head, n_head_kv, k_dim, v_dim, n_ctx, seed=0, scale=1.0, n_cells=None):
        self.n_head, self.n_head_kv, self.k_dim, self.v_dim = n_head, n_head_kv, k_dim, v_dim
        self.n_cells = n_cells or n_ctx
        self.counters = np.zeros(n_counters(n_head), np.int64)
        rng = np.random.default_rng(seed)
        self.q = (rng.standard_normal((n_ctx, n_head, k_dim)) * scale).astype(np.float32)
        self.k = rng.standard_normal((n_ctx, n_head_kv, k_dim)).astype(np.float32)
        self.v = rng.standard_normal((n_ctx, n_head_kv, v_dim)).astype(np.float32)
        self.clear()

    def clear(self):
        sizes = (
            cache_bytes("f16", self.n_head_kv, self.n_cells, self.k_dim) // 2,
            cache_bytes("f16", self.n_head_kv, self.n_cells, self.v_dim) // 2,
        )
        self.caches = [np.full(n + 2 * MARGIN, np.nan, np.float16) for n in sizes]
        for c in self.caches:
            c[:MARGIN] = c[-MARGIN:] = 77

    def kv(self):
        return [c[MARGIN:-MARGIN] for c in self.caches]

    def store(self, pos0, n, nth=1):
        step = slice(pos0, pos0 + n)
        state = np.array([n, pos0, n, 0], np.int64)
        sizes = self.n_head_kv, self.k_dim, self.v_dim, self.n_cells, 0, 0, 0, 0.0
        call(
            Kernel("rows.heads.kv_store"), self.k[step].copy(), self.v[step].copy(), *self.kv(), *sizes, state, nth=nth
        )
        for c in self.caches:
            assert (c[:MARGIN] == 77).all() and (c[-MARGIN:] == 77).all(), "written outside the cache"

    def attend(self, pos0, n, window=0, nth=1, scale=None, cap=0.0, few=0):
        state = np.array([n, pos0, n, 0], np.int64)
        whole = np.full(n * self.n_head * self.v_dim + 2 * MARGIN, -5.5, np.float32)
        scratch = np.full(scratch_bytes(n, self.n_head, self.n_cells, self.v_dim) // 4 + 2 * MARGIN, np.nan, np.float32)
        scratch[:MARGIN] = scratch[-MARGIN:] = 88
        y, inner = whole[MARGIN:-MARGIN], scratch[MARGIN:-MARGIN]
        scale = float(self.k_dim**-0.5 if scale is None else scale)
        q = self.q[pos0 : pos0 + n].copy()
        heads = self.n_head, self.n_head_kv, 0, self.n_head
        words = q, *self.kv(), y, *heads, self.n_cells, window, scale, float(cap), inner, self.counters, state
        how = {"softcap": True} if cap else {}
        how |= {"few": few} if few else narrow_tile(self.n_head // self.n_head_kv)  # as the engine asks
        call(Kernel("attention.flash.attend", k_dim=self.k_dim, v_dim=self.v_dim, **how), *words, nth=nth)
        assert not self.counters.any()
        for a, pattern in (whole, -5.5), (scratch, 88):
            assert (a[:MARGIN] == pattern).all() and (a[-MARGIN:] == pattern).all(), "written outside"
        return y.reshape(n, self.n_head, self.v_dim)

    def reference(self, pos0, n, window=0, scale=None, cap=0.0):
        """float64, with k and v rounded to f16 as the cache does."""
        group, seen = self.n_head // self.n_head_kv, pos0 + n
        k, v = (np.repeat(a[:seen].astype(np.float16).astype(np.float64), group, axis=1) for a in (self.k, self.v))
        s = np.einsum("thd,phd->htp", self.q[pos0:seen].astype(np.float64), k) * (
            self.k_dim**-0.5 if scale is None else scale
        )
        s = cap * np.tanh(s / cap) if cap else s
        t, p = np.arange(pos0, seen)[:, None], np.arange(seen)[None]
        s = np.where((p <= t) & ((t - p < window) | (window == 0)), s, -np.inf)
        w = np.exp(s - s.max(-1, keepdims=True))
        return np.einsum("htp,phd->thd", w / w.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(("dims", "columns"), [((80, 48), (80, 48)), ((20, 104), (32, 112)), ((7, 9), (16, 16))])
def test_kv_store(dims, columns):
    """Heads that are no whole number of vectors have zeros after them."""
    h = Heads(3, 3, *dims, 256)
    h.k[0, 0, :4], h.v[1, 2, :4] = [1e6, -1e6, 65519, np.inf], [1e6, -1e6, -np.inf, 65519]
    h.store(0, 1)
    h.store(1, 36, nth=3)
    h.store(37, 2, nth=2)
    k, v = h.kv()
    k = k.reshape(3, 256 // LANES, -1, LANES).transpose(0, 1, 3, 2).reshape(3, 256, -1)
    v = v.reshape(3, 256, -1)
    assert (k.shape[2], v.shape[2]) == columns
    for cache, source in (k, h.k), (v, h.v):
        wanted, dim = np.clip(source[:39], -65504, 65504).astype(np.float16).transpose(1, 0, 2), source.shape[2]
        assert (cache[:, :39, :dim] == wanted).all()
        assert (cache[:, :39, dim:] == 0).all()
        assert np.isnan(cache[:, 39:]).all()


RATIOS = [(1, 1), (2, 1), (6, 2), (4, 1), (5, 1), (8, 1), (12, 2)]
SIZES = [(64, 64), (80, 80), (128, 128), (96, 64), (192, 128), (256, 256)]
ODD_SIZES = [(8, 8), (20, 20), (40, 24), (72, 72), (100, 100), (104, 120), (1, 9), (33, 47)]  # no whole vectors


@pytest.mark.parametrize(("n_head", "n_head_kv"), RATIOS)
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33])
def test_prompt(n, n_head, n_head_kv):
    h = Heads(n_head, n_head_kv, 64, 64, 256, seed=n)
    h.store(0, n)
    y = [h.attend(0, n, nth=nth) for nth in (1, 2, 3)]
    np.testing.assert_allclose(y[0], h.reference(0, n), atol=3e-6)
    assert (y[1] == y[0]).all() and (y[2] == y[0]).all(), "depends on the number of threads"


@pytest.mark.parametrize("few", range(1, 6))
def test_rows_of_a_tile(few):
    """No result depends on how many rows share the loads of keys and values."""
    h = Heads(10, 2, 64, 80, 512, seed=few)
    h.store(0, 300)
    y = h.attend(0, 300)
    for pos, n in (0, 1), (299, 1), (100, 3):
        assert (h.attend(pos, n, few=few, nth=2) == y[pos : pos + n]).all()


@pytest.mark.parametrize(("k_dim", "v_dim"), SIZES + ODD_SIZES)
def test_head_sizes(k_dim, v_dim):
    h = Heads(6, 2, k_dim, v_dim, 512, seed=k_dim)
    h.store(0, 300)
    y = h.attend(0, 300, nth=2)
    np.testing.assert_allclose(y, h.reference(0, 300), atol=3e-6)
    for pos in (0, 63, 64, 255, 256, 299):
        assert (h.attend(pos, 1, nth=2) == y[pos]).all(), f"token {pos} alone"


@pytest.mark.parametrize("window", [0, 16, 100, 700])
@pytest.mark.parametrize(("n_head", "n_head_kv"), [(9, 3), (2, 2), (8, 1)])
def test_long(window, n_head, n_head_kv):
    """1300 positions in one prompt, in prompts of other lengths, and token by token: the same bits."""
    h = Heads(n_head, n_head_kv, 64, 64, 1536, seed=window)
    h.store(0, 1300)
    y = h.attend(0, 1300, window, nth=2)
    np.testing.assert_allclose(y, h.reference(0, 1300, window), atol=3e-6)
    for nth, step in (1, 333), (3, 513):
        for pos0 in range(0, 1300, step):
            n = min(step, 1300 - pos0)
            assert (h.attend(pos0, n, window, nth) == y[pos0 : pos0 + n]).all(), (pos0, n)
    for n in (1, 2, 3, 4, 5, 8):
        for pos0 in (0, 14, 15, 16, 62, 99, 100, 250, 253, 254, 255, 256, 511, 512, 700, 1023, 1022, 1024, 1290):
            for nth in (1, 2, 3):
                assert (h.attend(pos0, n, window, nth) == y[pos0 : pos0 + n]).all(), (pos0, n, nth)


def test_one_by_one():
    """The cache grows with each token: what is not stored yet is NaN and must not be seen."""
    h = Heads(9, 3, 64, 64, 512)
    h.store(0, 300)
    y = h.attend(0, 300)
    h.clear()
    for pos in range(300):
        h.store(pos, 1)
        assert (h.attend(pos, 1, nth=2) == y[pos]).all(), pos


@pytest.mark.parametrize("window", [1, 16, 64, 100, 256, 257])
@pytest.mark.parametrize("steps", [(1,) * 600, (37, 1, 1, 90, 3, 200, 2, 90, 5, 171), (171, 200, 200, 4, 25)])
def test_ring(window, steps):
    """A ring of as many cells as the rows of a step see gives the bits of a cache of all positions."""
    n_cells = -(-(window + max(steps)) // 256) * 256
    whole = Heads(4, 2, 32, 32, 768, seed=window)
    ring = Heads(4, 2, 32, 32, 768, seed=window, n_cells=n_cells)
    whole.store(0, 600)
    y = whole.attend(0, 600, window, nth=2)
    pos0 = 0
    for n in steps:
        ring.store(pos0, n)
        if len(steps) < 100 or pos0 % 256 < 3 or pos0 % 97 == 0:
            for nth in (1, 3):
                assert (ring.attend(pos0, n, window, nth) == y[pos0 : pos0 + n]).all(), (pos0, n, nth)
        pos0 += n


def test_sharp_and_flat_weights():
    """Scores of thousands and of zero."""
    for scale, tolerance in (0.0, 3e-6), (0.1, 1e-5), (1.0, 1e-4), (30.0, 3e-3), (1e4, 1.0):  # scores have 24 bits
        h = Heads(3, 1, 64, 64, 512, scale=4)
        h.store(0, 400)
        y = h.attend(0, 400, scale=scale)
        np.testing.assert_allclose(y, h.reference(0, 400, scale=scale), atol=tolerance)
        assert (h.attend(399, 1, scale=scale) == y[399]).all()


def test_nan_input_does_not_spread():
    """Rows whose q is NaN weigh nothing; their neighbours in the tile are untouched."""
    h = Heads(6, 2, 64, 64, 256)
    h.store(0, 20)
    y = h.attend(0, 20)
    h.q[7, 2] = np.nan
    z = h.attend(0, 20)
    same = np.ones((20, 6), bool)
    same[7, 2] = False
    assert (z[same] == y[same]).all()
    assert (z[7, 2] == 0).all()


@pytest.mark.parametrize("cap", [0.5, 5.0, 50.0])
def test_soft_limit_of_scores(cap):
    h = Heads(4, 2, 64, 64, 512, scale=4)
    h.store(0, 300)
    y = h.attend(0, 300, nth=2, cap=cap)
    np.testing.assert_allclose(y, h.reference(0, 300, cap=cap), atol=2e-5)
    for pos in (0, 63, 299):
        assert (h.attend(pos, 1, nth=2, cap=cap) == y[pos]).all()
