"""Row kernels against float64 NumPy: shapes around vector and run edges, any number of threads bit-identical,
nothing written outside.
"""

import numpy as np
import pytest

from ikpy_llm.kernels.compiler.jit import Kernel, call

WIDTHS = (1, 15, 32, 64, 100, 576)
ROWS = (1, 2, 15, 16, 17, 33)
MARGIN = 64  # floats around every output


def state(n_tokens, pos0=0, n_outputs=0):
    return np.array([n_tokens, pos0, n_outputs, 0], np.int64)


def run(spec, shape, words, init=None):
    """Call with the output in the place of Ellipsis among words, for 1, 2 and 3 threads;
    margins and equality are checked.
    """
    results = []
    for nth in (1, 2, 3):
        whole = np.full(int(np.prod(shape)) + 2 * MARGIN, -123.25, np.float32)
        y = whole[MARGIN:-MARGIN].reshape(shape)
        if init is not None:
            y[:] = init
        call(spec, *(y if w is Ellipsis else w for w in words), nth=nth)
        assert (whole[:MARGIN] == -123.25).all() and (whole[-MARGIN:] == -123.25).all(), "written outside the output"
        results.append(y.copy())
    assert all(r.tobytes() == results[0].tobytes() for r in results), "depends on the number of threads"
    return results[0].astype(np.float64)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


SHAPES = [(n, w) for n in ROWS for w in (WIDTHS if n in (1, 17) else WIDTHS[-3:])]


@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_rms_norm(n, width):
    rng = np.random.default_rng(n * width)
    x, w = random(rng, n, width) * 3, random(rng, width)
    y = run(Kernel("rows.rowwise.rms_norm"), x.shape, (x, w, 0, ..., width, 1, 1e-5, state(n)))
    old, tail = random(rng, n, width), (width, 1, 1e-5, state(n))
    added = run(Kernel("rows.rowwise.rms_norm", add=True), x.shape, (x, w, old, ..., *tail))
    assert (added == old + y.astype(np.float32)).all()
    assert (run(Kernel("rows.rowwise.rms_norm", add=True), x.shape, (x, w, ..., ..., *tail), init=old) == added).all()
    x = x.astype(np.float64)
    np.testing.assert_allclose(y, x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * w, rtol=2e-6)


def test_norm_of_parts_of_a_row():
    rng = np.random.default_rng(3)
    x, w = random(rng, 17, 3, 40), random(rng, 40)
    y = run(Kernel("rows.rowwise.rms_norm"), x.shape, (x, w, 0, ..., 40, 3, 1e-5, state(17)))
    alone = run(Kernel("rows.rowwise.rms_norm"), (51, 40), (x, w, 0, ..., 40, 1, 1e-5, state(51)))
    assert (y.reshape(51, 40) == alone).all()


@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_sums(n, width):
    rng = np.random.default_rng(n * width)
    x, b, bias = random(rng, n, width), random(rng, n, width), random(rng, width)
    assert (run(Kernel("rows.rowwise.add"), x.shape, (x, b, ..., width, state(n))) == (x + b)).all()
    assert (run(Kernel("rows.rowwise.add"), x.shape, (..., b, ..., width, state(n)), init=x) == (x + b)).all()
    assert (run(Kernel("rows.rowwise.add_bias"), x.shape, (x, bias, ..., width, state(n))) == x + bias).all()
    assert (run(Kernel("rows.rowwise.add_bias"), x.shape, (..., bias, ..., width, state(n)), init=x) == x + bias).all()


def test_one_factor():
    rng = np.random.default_rng(0)
    for n, width in ((1, 15), (17, 100), (2, 576)):
        x, factor = random(rng, n, width), np.float32([-1.7])
        assert (run(Kernel("rows.rowwise.scaled"), x.shape, (x, factor, ..., width, state(n))) == x * factor).all()
        assert (
            run(Kernel("rows.rowwise.scaled"), x.shape, (..., factor, ..., width, state(n)), init=x) == x * factor
        ).all()


def silu(x):
    return x / (1 + np.exp(-x))


def relu2(x):
    return np.maximum(x, 0) ** 2


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("act", "reference"), [("silu", silu), ("gelu", gelu), ("relu2", relu2)])
@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_gated(n, width, act, reference):
    rng = np.random.default_rng(n * width)
    gate, up = random(rng, n, width) * 4, random(rng, n, width)
    wanted = reference(gate.astype(np.float64)) * up
    y = run(Kernel("rows.rowwise.gated", act=act), gate.shape, (gate, up, ..., width, state(n)))
    np.testing.assert_allclose(y, wanted, rtol=2e-6, atol=2e-6)
    assert (
        run(Kernel("rows.rowwise.gated", act=act), gate.shape, (..., up, ..., width, state(n)), init=gate) == y
    ).all(), "in place"


@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_weighted(n, width):
    """Rows times numbers between 0 and 1."""
    rng = np.random.default_rng(n * width)
    x, gate = random(rng, n, width), random(rng, n, 1) * 4
    wanted = x / (1 + np.exp(-gate.astype(np.float64)))
    y = run(Kernel("rows.rowwise.weighted"), x.shape, (x, gate, ..., width, state(n)))
    np.testing.assert_allclose(y, wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_softcap(n, width):
    x = random(np.random.default_rng(n * width), n, width) * 100
    for cap in (0.5, 30.0):
        y = run(Kernel("rows.rowwise.softcap"), x.shape, (x, ..., width, cap, state(n)))
        np.testing.assert_allclose(y, cap * np.tanh(x.astype(np.float64) / cap), atol=3e-7 * cap)
        in_place = run(Kernel("rows.rowwise.softcap"), x.shape, (..., ..., width, cap, state(n)), init=x)
        assert (in_place == y).all()


def test_gated_extremes_stay_finite():
    gate = np.array([[-1e30, -200, -88, 0, 88, 200, 1e30, -0.0]], np.float32)
    for act in ("silu", "gelu"):
        y = run(Kernel("rows.rowwise.gated", act=act), gate.shape, (gate, np.ones_like(gate), ..., 8, state(1)))
        assert np.isfinite(y[:, 1:6]).all()
        np.testing.assert_allclose(y[0, 3:6], [0, 88, 200], rtol=1e-6)
        np.testing.assert_allclose(y[0, 1:3], 0, atol=1e-30)


@pytest.mark.parametrize(
    ("n", "n_outputs", "width"), [(1, 1, 576), (33, 1, 100), (33, 2, 64), (17, 17, 32), (5, 0, 64)]
)
def test_last_rows(n, n_outputs, width):
    x = random(np.random.default_rng(n), n, width)
    y = run(Kernel("rows.rowwise.last_rows"), (n_outputs, width), (x, ..., width, state(n, 3, n_outputs)))
    assert (y == x[n - n_outputs :]).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_deliver(width, bad):
    """Rows arrive where the state says, between margins; a number that is not finite is told, wherever it is."""
    rng = np.random.default_rng(width)
    x, cells = random(rng, 3, width), rng.permutation(3 * width)[:9]
    for cell in [None] if bad is None else cells:
        if bad is not None:
            x.flat[cell] = bad
        for nth in (1, 2, 3):
            whole, told = np.full(3 * width + 2 * MARGIN, -123.25, np.float32), np.zeros(6, np.int64)
            told[0], told[5] = 3, whole[MARGIN:].ctypes.data
            call(Kernel("rows.rowwise.deliver"), x, width, told, nth=nth)
            assert whole[MARGIN:-MARGIN].tobytes() == x.tobytes()
            assert (whole[:MARGIN] == -123.25).all() and (whole[-MARGIN:] == -123.25).all()
            assert told[3] == (bad is not None)
        x.flat[0 if cell is None else cell] = 0.5
