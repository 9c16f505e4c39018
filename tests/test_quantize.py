"""Activation quantizer: every number of a record equals the NumPy reference; sources, guards, threads, margins."""

import numpy as np
import pytest
import reference_kernels as ref
from matmul_cases import Margins, T, quantize_kernel, random_x, step_state

from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.derive.layout import PAIRS, SLICE, ActsLayout
from ikpy_llm.kernels.simd import target

FLAVOURS = ((8, 32), (32, 16), (128, 32))
SOURCES = ("norm", "silu", "gelu")
TILES = sorted({1, 3, T, 8})


@pytest.fixture(scope="module", autouse=True)
def kernels():
    plain = [quantize_kernel(t, f) for t in TILES for f in (False, True)]
    jit.load(plain + [quantize_kernel(t, f, s) for t in (1, 3) for f in (False, True) for s in SOURCES])


class Records:
    """Activations as a kernel stored them; arrays have a row per column of the tiles, padding included."""

    def __init__(self, x, t, flavours=FLAVOURS, is_float=False, source="plain", w=None, eps=0.0, nth=1):
        n, k = x.shape
        self.layout = layout = ActsLayout(t, flavours, is_float)
        buffers, state = Margins(), step_state(n)
        raw = buffers(layout.n_bytes(n, k))
        words = [zero * 256 + sub for zero, sub in layout.stored] + [0, 0, 0]
        head = np.ascontiguousarray(x), 0 if w is None else np.ascontiguousarray(w), raw, k, k, layout.stride
        jit.call(quantize_kernel(t, is_float, source), *head, *words[:3], float(eps), state, nth=nth)
        buffers.check()
        self.bad, self.raw = int(state[3]), raw
        self.records = raw.reshape(-(-k // SLICE), -(-n // t), layout.stride)
        self.t, self.k = t, k

    def part(self, s, offset, n_bytes, dtype, shape, axis):
        """One array of slice s: tiles side by side along `axis`."""
        tiles = self.records[s][:, offset : offset + n_bytes]
        each = [np.ascontiguousarray(tile).view(dtype).reshape(shape) for tile in tiles]
        return np.concatenate(each, axis=axis)

    def of_slice(self, s):
        """Arrays [...][column] of the blocks that slice s has."""
        t, o, blocks = self.t, self.layout, min(SLICE, self.k - s * SLICE) // 32
        out = {
            "codes": self.part(s, 0, 256 * t, np.int8, (64, t, 4), 1)
            .transpose(1, 0, 2)
            .reshape(-1, 256)[:, : 32 * blocks],
            "d": self.part(s, o.scales, 32 * t, np.float32, (8, t), 1).T[:, :blocks],
            "offsets": self.part(s, o.offsets, 32 * t, np.float32, (8, t), 1).T[:, :blocks],
            "sums": self.part(s, o.sums, 32 * t, np.float32, (8, t), 1).T[:, :blocks],
            "unit": self.part(s, o.unit, 4 * t, np.float32, (1, t), 1).T[:, 0],
        }
        pairs = self.part(s, o.sums32, 16 * t, np.int16, (4, t, 2), 1)
        out["sums32"] = pairs.transpose(1, 0, 2).reshape(-1, 8)[:, :blocks]
        pairs = self.part(s, o.sums16, 32 * t, np.int16, (8, t, 2), 1)
        out["sums16"] = pairs.transpose(1, 0, 2).reshape(-1, 16)[:, : 2 * blocks]
        for zero, sub in o.stored:
            each = sub % PAIRS
            starts = self.part(s, o.start((zero, sub)), SLICE // each * 4 * t, np.int32, (SLICE // each, t), 1)
            out[zero, sub] = starts.T[:, : 32 * blocks // each]
        return out

    def floats(self, n):
        """Float acts as [n][k]."""
        parts = [self.part(s, 0, 1024 * self.t, np.float32, (256, self.t), 1).T[:n] for s in range(len(self.records))]
        return np.concatenate(parts, axis=1)[:, : self.k]


def check(x, t, flavours=FLAVOURS, **kwargs):
    """Every stored number against the reference of `x` (given as the values after the source)."""
    values = kwargs.pop("values", x)
    acts, n = ref.quantize(values), len(values)
    records = Records(x, t, flavours, **kwargs)
    assert records.bad == 0
    for s in range(len(records.records)):
        got, blocks = records.of_slice(s), slice(s * 8, s * 8 + 8)
        half = slice(s * 16, s * 16 + 16)
        wanted = {
            "codes": ref.in_words(acts.codes)[:, s * SLICE : (s + 1) * SLICE],
            "d": acts.d[:, blocks],
            "offsets": acts.offsets[:, blocks],
            "sums": acts.scaled_sums()[:, blocks],
            "sums32": acts.fixed_sums(32)[:, blocks],
            "sums16": acts.fixed_sums(16)[:, half],
            "unit": acts.unit[:, s],
        }
        for zero, sub in records.layout.stored:
            each = SLICE // (sub % PAIRS)
            wanted[zero, sub] = acts.starts(zero, sub)[:, s * each : (s + 1) * each]
        for name, a in wanted.items():
            assert (got[name][:n] == a).all(), (name, s, t, np.argwhere(got[name][:n] != a)[:3])
        for name in ("codes", "d", "offsets", "sums", "sums32", "sums16", "unit"):
            assert (got[name][n:] == 0).all(), ("padding", name)
    assert np.abs(acts.codes).max(initial=0) <= 127
    return acts


@pytest.mark.parametrize("t", TILES)
@pytest.mark.parametrize("k", [32, 64, 96, 256, 288, 576, 768])
def test_random(t, k):
    for n in sorted({1, 2, t, t + 1, 13}):
        for nth in (1, 2, 3):
            check(random_x(n, k, seed=t), t, nth=nth)


def test_other_start_values():
    for flavours in ((), ((0, 32),), ((16, 32),), ((32, 16), (0, 32), (16, 32)), ((0, 32), (128, 32))):
        check(random_x(7, 288), T, flavours)
    if target.current().pairs16:
        for flavours in (((63, PAIRS + 8),), ((32, PAIRS + 16), (8, 32), (1, PAIRS + 32)), ((4, 16), (31, PAIRS + 16))):
            for t in (1, T):
                check(random_x(7, 288), t, flavours)
    with pytest.raises(KeyError, match="no start values"):
        ActsLayout(1, ((8, 32),)).start((16, 32))


def special_rows():
    """Rows of 512 columns where rounding, scales or guards are at an edge."""
    rng = np.random.default_rng(5)
    rows = {"zeros": np.zeros(512), "minus zeros": np.full(512, -0.0)}
    rows["one of each sign"] = np.where(np.arange(512) % 7 == 0, 3.5, -3.5)
    for name, tiny in ("denormals", 1e-40), ("below the limit", 9e-31), ("at the limit", 1e-30), ("above it", 1.1e-30):
        rows[name] = rng.standard_normal(512).clip(-1, 1) * tiny
        rows[name][[0, 300]] = tiny
    rows["largest"] = rng.choice([-1, 1], 512) * float(np.nextafter(np.float32(2.0**110), np.float32(0)))
    ties = (rng.integers(-127, 127, 512) + 0.5).clip(-126.5, 126.5)  # x * 127 / amax is exactly half-way
    ties[::32] = 127
    rows["ties"] = ties
    rows["ties of small blocks"] = np.concatenate([ties[:256], ties[256:] * np.repeat(2.0 ** -np.arange(8), 32)])
    rows["ties of small blocks"][256] = 127
    powers = np.ones(512) * np.repeat(2.0 ** -np.arange(16), 32)
    rows["powers"] = powers
    rows["just below powers"] = np.nextafter(powers.astype(np.float32), np.float32(0))
    rows["just below powers"][[0, 256]] = powers[[0, 256]]
    rows["just above powers"] = np.nextafter(powers.astype(np.float32), np.float32(2))
    rows["just above powers"][[0, 256]] = powers[[0, 256]]
    outlier = rng.standard_normal(512)
    outlier[[5, 400]] = 1e30, -1.2e33
    rows["outliers"] = outlier
    rows["denormal blocks"] = np.where(np.arange(512) % 64 < 32, 1e-42, 1e-3 * rng.standard_normal(512))
    rows["denormal beside largest"] = np.where(np.arange(512) % 64 < 32, 1e-45, 1.2e33)
    rows["one value"] = np.zeros(512)
    rows["one value"][511] = -1e-3
    return {name: np.asarray(row, np.float32) for name, row in rows.items()}


@pytest.mark.parametrize("name", special_rows())
def test_special_values(name):
    row = special_rows()[name]
    for t in (1, T):
        acts = check(np.stack([row, row[::-1], -row]), t)
        if name in ("zeros", "minus zeros", "denormals", "below the limit"):
            assert (acts.codes == 0).all() and (acts.d == 0).all() and (acts.unit == 0).all()
        if name == "powers":
            assert set(np.abs(acts.codes[0])) == {127}
        if name == "largest":
            assert set(np.abs(acts.codes.ravel())) == {127}


def test_error_of_a_value():
    """At most half a step (see reference_kernels.quantization_error)."""
    x = random_x(50, 768)
    acts = ref.quantize(x)
    assert (np.abs(acts.values - x) <= (0.5 + 127 * 2.0**-23) * acts.step).all()
    peaks = np.abs(x.reshape(50, -1, 32)).max(2)
    assert (np.abs(acts.step[:, ::32] * 127 / peaks - 1) <= 2.0**-21).all(), "every block uses all codes"


# ---------------------------------------------------------------- sources
def source_data(source, n, k):
    x, rng = random_x(n, k, seed=9) * 3, np.random.default_rng(9)
    w = rng.standard_normal(k if source == "norm" else (n, k)).astype(np.float32)
    wide = x.astype(np.float64)
    if source == "norm":
        exact = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * w
    elif source == "silu":
        exact = wide / (1 + np.exp(-wide)) * w
    else:
        exact = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))) * w
    return x, w, exact


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("t", [1, 3])
def test_sources(source, t):
    """Values against float64; codes are those of the values. gelu's error is relative to |x w|: 1 + tanh cancels."""
    for n, k in (1, 576), (2, 256), (4, 96):
        x, w, exact = source_data(source, n, k)
        for nth in (1, 2):
            values = Records(x, t, (), True, source, w, 1e-5, nth).floats(n)
            size = np.abs(x.astype(np.float64) * w) if source == "gelu" else np.abs(exact)
            assert (np.abs(values - exact) <= 1e-6 * size).all()
            check(x, t, values=values, source=source, w=w, eps=1e-5, nth=nth)


# ---------------------------------------------------------------- float types
@pytest.mark.parametrize("t", TILES)
@pytest.mark.parametrize("k", [1, 2, 15, 33, 255, 256, 257, 576])
def test_float_records(t, k):
    """Values as they are, padding columns zero, and nothing behind the last value of x is looked at."""
    for n in (1, 2, t + 1):
        room = np.full(n * k + 64, np.nan, np.float32)
        room[: n * k] = random_x(n, k).ravel()
        x = room[: n * k].reshape(n, k)
        for nth in (1, 2):
            records = Records(x, t, (), True, nth=nth)
            assert records.bad == 0, "read behind the end of x"
            assert (records.floats(n) == x).all()
            assert (records.floats(-(-n // t) * t)[n:] == 0).all()


@pytest.mark.parametrize("source", SOURCES)
def test_sources_of_odd_width(source):
    n, k = 2, 37
    x, w, exact = source_data(source, n, k)
    room = [np.full(a.size + 64, np.nan, np.float32) for a in (x, w)]
    for r, a in zip(room, (x, w), strict=True):
        r[: a.size] = a.ravel()
    records = Records(room[0][: n * k].reshape(n, k), 3, (), True, source, room[1][: w.size], 1e-5)
    assert records.bad == 0
    np.testing.assert_allclose(records.floats(n), exact, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- values that are not finite
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 2.0**110])
@pytest.mark.parametrize("is_float", [False, True])
def test_not_finite(value, is_float):
    """One such value anywhere sets state word 3; the codes of its slice stay numbers. 2^110 is too large for codes."""
    bad = not (is_float and np.isfinite(value))
    for t in (1, 3, T):
        for n, k in (1, 288), (t + 1, 288):
            for place in (0, 15, 16, 31, 255, 256, 287):
                for row in {0, n - 1}:
                    x = random_x(n, k)
                    x[row, place] = value
                    for nth in (1, 3):
                        assert Records(x, t, FLAVOURS[: 3 * (not is_float)], is_float, nth=nth).bad == bad


@pytest.mark.parametrize("source", SOURCES)
def test_not_finite_after_the_source(source):
    for t, is_float in (1, False), (3, True), (3, False):
        for n in (1, 4):
            for bad in np.nan, np.inf:
                x, w, _ = source_data(source, n, 96)
                x[n - 1, 40] = bad
                assert Records(x, t, (), is_float, source, w, 1e-5).bad == 1
            x, w, _ = source_data(source, n, 96)
            x[0, 7] = 1.0 if source == "norm" else 3e38
            w.reshape(-1)[7] = np.inf if source == "norm" else 3e38  # finite each, but not their product
            assert Records(x, t, (), is_float, source, w, 1e-5).bad == 1
