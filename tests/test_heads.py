"""Heads between matrix product and attention: rotation against float64 NumPy; norm, rotation and storing in one kernel
give the bits of three.
"""

import numpy as np
import pytest
from test_rowwise import random, run, state

from ikpy_llm.kernels import simd
from ikpy_llm.kernels.compiler.jit import Kernel, call

EPS = 1e-5


def rope_table(n_ctx, n_rot):
    angle = np.arange(n_ctx)[:, None] * 10000.0 ** (-np.arange(0, n_rot, 2) / n_rot)
    return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


SIZES = [(1, 9, 64, 64), (17, 3, 80, 80), (33, 2, 128, 64), (2, 1, 36, 36), (5, 4, 10, 6)]  # n, n_head, head_dim, n_rot


@pytest.mark.parametrize("style", ["norm", "neox"])
@pytest.mark.parametrize(("n", "n_head", "head_dim", "n_rot"), SIZES)
def test_rope(style, n, n_head, head_dim, n_rot):
    rng = np.random.default_rng(n)
    x, table, pos0 = random(rng, n, n_head, head_dim), rope_table(64, n_rot), 7
    half = n_rot // 2
    a, b = (slice(0, n_rot, 2), slice(1, n_rot, 2)) if style == "norm" else (slice(0, half), slice(half, n_rot))
    c, s = (table[pos0 : pos0 + n, None, :, i].astype(np.float64) for i in (0, 1))
    wanted = x.astype(np.float64)
    wanted[..., a], wanted[..., b] = x[..., a] * c - x[..., b] * s, x[..., a] * s + x[..., b] * c
    spec, tail = Kernel("rows.heads.rope", style=style), (table, n_head, head_dim, n_rot, 0, 0.0, state(n, pos0))
    y = run(spec, x.shape, (x, ..., *tail))
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    assert (run(spec, x.shape, (..., ..., *tail), init=x) == y).all(), "in place"
    one = run(spec, (1, n_head, head_dim), (x[-1:], ..., *tail[:-1], state(1, pos0 + n - 1)))
    assert (one == y[-1:]).all(), "a token alone"


@pytest.mark.parametrize("style", ["norm", "neox"])
@pytest.mark.parametrize(("n", "n_head", "head_dim", "n_rot"), SIZES)
def test_norm_and_rotation_at_once(style, n, n_head, head_dim, n_rot):
    rng = np.random.default_rng(n)
    x, w, table = random(rng, n, n_head, head_dim) * 5, random(rng, head_dim), rope_table(64, n_rot)
    normed = run(Kernel("rows.rowwise.rms_norm"), x.shape, (x, w, 0, ..., head_dim, n_head, EPS, state(n)))
    tail = table, n_head, head_dim, n_rot
    wanted = run(
        Kernel("rows.heads.rope", style=style), x.shape, (normed.astype(np.float32), ..., *tail, 0, 0.0, state(n, 5))
    )
    spec, tail = Kernel("rows.heads.rope", style=style, norm=True), (*tail, w, EPS, state(n, 5))
    assert (run(spec, x.shape, (x, ..., *tail)) == wanted).all()
    assert (run(spec, x.shape, (..., ..., *tail), init=x) == wanted).all(), "in place"


@pytest.mark.parametrize("n_cells", [256, 512])
@pytest.mark.parametrize(("style", "norm"), [("norm", False), ("neox", False), ("neox", True)])
def test_keys_are_rotated_into_their_cells(style, norm, n_cells):
    """300 positions in steps; those from n_cells on take the place of the oldest."""
    n, n_head, k_dim, v_dim, n_rot = 300, 2, 48, 32, 40
    rng = np.random.default_rng(1)
    k, v, w, table = random(rng, n, n_head, k_dim), random(rng, n, n_head, v_dim), random(rng, k_dim), rope_table(n, 40)
    tail = table, n_head, k_dim, n_rot, w, EPS, state(n)
    keys = run(Kernel("rows.heads.rope", style=style, norm=norm), k.shape, (k, ..., *tail)).astype(np.float16)
    results = []
    for nth in (1, 3):
        kcache, vcache = (np.full(n_cells * n_head * d, np.nan, np.float16) for d in (k_dim, v_dim))
        for pos0, step in (0, 1), (1, 98), (99, 1), (100, 200):
            part = slice(pos0, pos0 + step)
            sizes = n_head, k_dim, v_dim, n_cells, table, n_rot, w, EPS, state(step, pos0)
            spec = Kernel("rows.heads.kv_store", style=style, norm=norm)
            call(spec, k[part].copy(), v[part].copy(), kcache, vcache, *sizes, nth=nth)
        results.append(kcache.tobytes() + vcache.tobytes())
    assert results[0] == results[1]
    kcache = (
        kcache.reshape(n_head, n_cells // simd.LANES, k_dim, simd.LANES).swapaxes(2, 3).reshape(n_head, n_cells, -1)
    )
    vcache = vcache.reshape(n_head, n_cells, v_dim)
    for pos in range(max(0, n - n_cells), n):
        assert (kcache[:, pos % n_cells] == keys[pos]).all() and (vcache[:, pos % n_cells] == v[pos].astype("f2")).all()
    assert np.isnan(kcache[:, n:]).all()
