"""Quantized KV caches: what is stored equals the reference's run-time quantizers; attention on it equals float64 NumPy;
prompt, single tokens and any number of threads agree bit for bit; a model answers as with an exact cache.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import tiny_llama
from reference_kv import cells, quantized, rotated
from sessions import session

from ikpy_llm.engine.cache import kv_cache
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels import simd
from ikpy_llm.kernels.attention.dots import SIGNED, WORDS
from ikpy_llm.kernels.attention.layout import cache_bytes, n_counters, plain_scratch_bytes, scratch_bytes
from ikpy_llm.kernels.compiler.jit import Kernel, call
from ikpy_llm.kernels.kv.types import KV_TYPES, kv_type

GOLDEN = np.load(Path(__file__).parent / "data/kv_types.npz")
MARGIN = 64
PAIRS = [("f32", "bf16"), ("bf16", "q8_KV"), ("q8_KV", "f32"), ("q8_0", "q6_0"), ("q6_0", "q8_0"), ("q5_1", "q4_1")]
PAIRS += [("q5_0", "q5_1"), ("q4_1", "q5_0"), ("q4_0", "iq4_nl"), ("iq4_nl", "q4_0")]  # every type on each side
ATTENDED = [("f32", "bf16"), ("q8_KV", "q8_0"), ("q8_0", "q6_0"), ("q5_1", "q4_1"), ("q4_0", "iq4_nl")]


class Cache:
    """Random q, k, v in a cache of these types, around which nothing may be written. Cells never stored hold NaN."""

    def __init__(self, types, n_head, n_head_kv, k_dim, v_dim, n, n_cells=0, had=(False, False), seed=0):
        self.types, self.n_head, self.n_head_kv, self.dims, self.had = types, n_head, n_head_kv, (k_dim, v_dim), had
        self.n, self.n_cells = n, n_cells or -(-n // 256) * 256
        rng = np.random.default_rng(seed)
        shape = rng.lognormal(0, 0.5, 64)  # columns differ in size
        self.q = rng.standard_normal((n, n_head, k_dim)).astype(np.float32)
        self.k, self.v = (
            (rng.standard_normal((n, n_head_kv, d)) * np.resize(shape, d)).astype(np.float32) for d in (k_dim, v_dim)
        )
        self.clear()

    def clear(self):
        kinds = zip(self.types, self.dims, self.had, strict=True)
        sizes = (cache_bytes(t, self.n_head_kv, self.n_cells, d, had) for t, d, had in kinds)
        self.caches = [np.full(n + 2 * MARGIN, 255, np.uint8) for n in sizes]
        for c in self.caches:
            c[:MARGIN] = c[-MARGIN:] = 77

    def bytes(self):
        return [c[MARGIN:-MARGIN] for c in self.caches]

    def store(self, pos0, n, nth=1):
        step, state = slice(pos0, pos0 + n), np.array([n, pos0, n, 0], np.int64)
        had = {"khad": self.dims[0] * self.had[0], "vhad": self.dims[1] * self.had[1]}
        spec = Kernel("rows.heads.kv_store", k_type=self.types[0], v_type=self.types[1], **had)
        sizes = self.n_head_kv, *self.dims, self.n_cells, 0, 0, 0, 0.0
        call(spec, self.k[step].copy(), self.v[step].copy(), *self.bytes(), *sizes, state, nth=nth)
        for c in self.caches:
            assert (c[:MARGIN] == 77).all() and (c[-MARGIN:] == 77).all(), "written outside the cache"

    def attend(self, pos0, n, window=0, nth=1, path="attention.flash.attend", **how):
        state, counters = np.array([n, pos0, n, 0], np.int64), np.zeros(n_counters(self.n_head), np.int64)
        n_bytes = scratch_bytes(n, self.n_head, self.n_cells, self.dims[1])
        if path != "attention.flash.attend":
            n_bytes = plain_scratch_bytes(nth, self.n_cells)
        scratch = np.full(n_bytes // 4, np.nan, np.float32)
        whole = np.full(n * self.n_head * self.dims[1] + 2 * MARGIN, -5.5, np.float32)
        heads = self.n_head, self.n_head_kv, 0, self.n_head
        words = self.q[pos0 : pos0 + n].copy(), *self.bytes(), whole[MARGIN:-MARGIN], *heads, self.n_cells, window
        dims = {"k_dim": self.dims[0], "v_dim": self.dims[1], "k_type": self.types[0], "v_type": self.types[1]}
        spec = Kernel(
            path, **dims, **how, **{name: True for name, on in zip(("khad", "vhad"), self.had, strict=True) if on}
        )
        call(spec, *words, float(self.dims[0] ** -0.5), 0.0, scratch, counters, state, nth=nth)
        assert not counters.any() and (whole[:MARGIN] == -5.5).all() and (whole[-MARGIN:] == -5.5).all()
        return whole[MARGIN:-MARGIN].reshape(n, self.n_head, -1)

    def kept(self):
        """Keys and values as the cache has them, float64; more columns than a head has are left out."""
        found = []
        for i, data in enumerate(self.bytes()):
            columns = kv_type(self.types[i]).columns(self.dims[i], self.had[i])
            y = cells(data, self.types[i], self.n_head_kv, self.n_cells, columns, keys=not i)[:, : self.n]
            y = y.swapaxes(0, 1).astype(np.float64)
            found.append((rotated(y) if self.had[i] else y)[..., : self.dims[i]])
        return found

    def rounded_q(self):
        """Queries as the products with quantized keys take them: 8 bits and a scale per 32 columns."""
        scale = np.float32(self.dims[0] ** -0.5) * np.float32(np.log2(np.e))  # the kernel's, so that ties round alike
        x = self.q * scale
        x = np.pad(x, ((0, 0), (0, 0), (0, kv_type(self.types[0]).columns(self.dims[0], self.had[0]) - self.dims[0])))
        x = rotated(x).astype(np.float32) if self.had[0] else x
        blocks = x.reshape(-1, 32)
        top = np.abs(blocks).max(1, keepdims=True)
        if simd.TARGET.pairs16 and kv_type(self.types[0]).top > 127:  # products of neighbours must fit 16 bits
            top = np.maximum(top, np.abs(blocks.reshape(-1, 16, 2).sum(2)).max(1, keepdims=True))
        d = ((top / np.float32(127)).view(np.uint32) & 0xFFFFFFFC).view(np.float32)
        y = np.rint(blocks * np.divide(1, d, out=np.zeros_like(d), where=d > 0)) * d.astype(np.float64) / scale
        return (rotated(y.reshape(x.shape)) if self.had[0] else y.reshape(x.shape))[..., : self.dims[0]]

    def reference(self, window=0, exact=False):
        """float64, of all rows, on what the cache keeps; exact: queries are not rounded."""
        group, t = self.n_head // self.n_head_kv, np.arange(self.n)
        k, v = (np.repeat(x, group, axis=1) for x in self.kept())
        q = self.q.astype(np.float64) if exact or kv_type(self.types[0]).is_plain else self.rounded_q()
        s = np.einsum("thd,phd->htp", q, k) * self.dims[0] ** -0.5
        seen = (t <= t[:, None]) & ((t[:, None] - t < window) | (window == 0))
        w = np.exp(np.where(seen, s, -np.inf) - np.where(seen, s, -np.inf).max(-1, keepdims=True))
        return np.einsum("htp,phd->thd", w / w.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("name", [n for n in KV_TYPES if n != "f32"])
def test_quantizers_are_those_of_the_reference(name):
    np.testing.assert_array_equal(quantized(GOLDEN[name + "_x"], name), GOLDEN[name])


@pytest.mark.parametrize("types", PAIRS, ids="-".join)
def test_what_is_stored(types):
    """Golden rows, random ones, zeros and values beyond f16, in steps that share panels, by any number of threads."""
    n, dims = 40, (64, 96)
    results = []
    for nth in (1, 3):
        h = Cache(types, 2, 2, *dims, n)
        for x, name in (h.k, types[0]), (h.v, types[1]):
            rows = GOLDEN.get(name + "_x", GOLDEN["f16_x"])[:3]
            x[7:10, 1, :64] = rows[:, :64]
            x[3], x[4, 0, 5] = 0, 1e6
        for pos0, step in (0, 1), (1, 1), (2, 21), (23, 1), (24, 16):
            h.store(pos0, step, nth)
        h.store(23, 1)  # again, as after going back
        results.append([c.tobytes() for c in h.bytes()])
        for keys, data, name, x, dim in zip((True, False), h.bytes(), types, (h.k, h.v), dims, strict=True):
            found = cells(data, name, 2, h.n_cells, dim, keys)[:, :n].swapaxes(0, 1)
            golden = GOLDEN.get(name, GOLDEN["f16_x"])[:3]
            if name in GOLDEN and name != "q8_KV":  # whose rows are scaled as a whole
                np.testing.assert_array_equal(found[7:10, 1, :64], golden[:, :64])
            fitted = name in ("q6_0", "q4_0", "iq4_nl")  # sums in another order may round to the next f16
            expected = quantized(x, name)
            np.testing.assert_allclose(found, expected, rtol=1e-3 * fitted, err_msg=name)
            assert (found == expected).mean() > 0.98
    assert results[0] == results[1]


@pytest.mark.parametrize("types", ATTENDED, ids="-".join)
def test_attention(types):
    """Long enough for several chunks; a prompt, steps of a few tokens and single ones; a window; the plain kernel."""
    h = Cache(types, 6, 2, 64, 96, 530)
    h.store(0, 530)
    y, expected = h.attend(0, 530, nth=2), h.reference()
    np.testing.assert_allclose(y, expected, atol=tolerance(types) * np.abs(expected).max())
    assert (h.attend(0, 530, nth=3) == y).all()
    for pos0, n, nth in (0, 1, 1), (63, 2, 2), (255, 3, 3), (400, 40, 1), (529, 1, 2), (529, 1, 1):
        assert (h.attend(pos0, n, nth=nth) == y[pos0 : pos0 + n]).all(), (pos0, n, nth)
    if types == ATTENDED[1]:
        assert (h.attend(528, 1, few=3) == y[528]).all(), "depends on the rows of a tile"
    z, expected = h.attend(0, 530, window=100), h.reference(100)
    np.testing.assert_allclose(z, expected, atol=tolerance(types) * np.abs(expected).max())
    assert (h.attend(529, 1, window=100) == z[529]).all()
    plain, expected = h.attend(0, 530, window=100, path="attention.plain.attend", nth=2), h.reference(100, exact=True)
    np.testing.assert_allclose(plain, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(z - expected).mean() < 0.01 * expected.std()  # what 8 bits of the queries cost


def tolerance(types):
    """Share of the largest output: weights of quantized values have 15 or 16 bits, float ones 24."""
    return 1e-5 if all(kv_type(name).is_plain for name in types) else 1e-4


@pytest.mark.parametrize(
    ("dims", "heads", "types"),
    [
        ((128, 128), (12, 2), ("q8_0", "q8_0")),
        ((192, 128), (4, 4), ("q8_0", "q4_0")),
        ((256, 256), (8, 1), ("q4_0", "q8_0")),
        ((8, 8), (8, 4), ("q8_0", "q8_0")),  # no whole tiles from here on
        ((20, 40), (2, 2), ("q5_1", "q4_1")),
        ((72, 104), (6, 2), ("q8_KV", "q8_KV")),
        ((100, 100), (4, 4), ("q4_0", "iq4_nl")),
        ((120, 80), (3, 1), ("q6_0", "f32")),
        ((80, 120), (5, 1), ("q5_0", "bf16")),
    ],
    ids=str,
)
def test_head_sizes(dims, heads, types):
    h = Cache(types, *heads, *dims, 300)
    h.store(0, 300)
    y, expected = h.attend(0, 300, nth=2), h.reference()
    np.testing.assert_allclose(y, expected, atol=tolerance(types) * np.abs(expected).max())
    for pos, n, nth in (299, 1, 2), (0, 1, 1), (255, 3, 3), (100, 40, 1):
        assert (h.attend(pos, n, nth=nth) == y[pos : pos + n]).all(), (pos, n)
    plain, expected = h.attend(0, 300, path="attention.plain.attend", nth=2), h.reference(exact=True)
    np.testing.assert_allclose(plain, expected, atol=1e-5 * np.abs(expected).max())


def test_mean_error_of_values():
    """What rounding weights of values to 15 or 16 bits costs in the mean, which varies less than the largest."""
    errors = []
    for seed in range(4):
        h = Cache(("f32", "q8_0"), 3, 1, 120, 80, 300, seed=seed)
        h.store(0, 300)
        expected = h.reference()
        errors.append(np.abs(h.attend(0, 300, nth=2) - expected).mean() / np.abs(expected).max())
    assert np.mean(errors) < (4e-6 if WORDS or SIGNED else 2e-6)  # of the largest output; 2.7e-6 and 1.3e-6


@pytest.mark.parametrize("types", [("q4_0", "q5_1")], ids="-".join)
def test_ring(types):
    """A ring of as many cells as the rows of a step see gives the bits of a cache of all positions."""
    whole, ring = (Cache(types, 4, 2, 64, 64, 600, n_cells=n) for n in (768, 256))
    whole.store(0, 600)
    y, pos0 = whole.attend(0, 600, 100), 0
    for n in (37, 1, 1, 90, 3, 150, 2, 90, 5, 150, 71):
        ring.store(pos0, n)
        assert (ring.attend(pos0, n, 100, nth=2) == y[pos0 : pos0 + n]).all(), (pos0, n)
        pos0 += n


@pytest.mark.parametrize("dims", [(96, 64), (100, 40)])
def test_rotation(dims):
    """Outliers in a few columns: rotated, a 4-bit cache loses much less."""
    errors = []
    for had in (False, False), (True, True):
        h = Cache(("q4_0", "q4_0"), 4, 2, *dims, 300, had=had)
        h.k[..., 5] *= 40
        h.q[..., 5] /= 40
        exact = Cache(("f32", "f32"), 4, 2, *dims, 300)
        exact.k[:], exact.q[:] = h.k, h.q
        exact.store(0, 300)
        h.store(0, 300)
        y, expected = h.attend(0, 300, nth=2), h.reference()
        np.testing.assert_allclose(y, expected, atol=5 * tolerance(h.types) * np.abs(expected).max())
        assert (h.attend(299, 1) == y[299]).all()
        plain, expected = h.attend(0, 300, path="attention.plain.attend"), h.reference(exact=True)
        np.testing.assert_allclose(plain, expected, atol=1e-5 * np.abs(expected).max())
        errors.append(np.square(exact.reference() - y).mean())
    assert errors[1] < 0.5 * errors[0]


def test_rotation_of_plain_heads():
    """A rotation takes 32 columns, of exact types too."""
    h = Cache(("f32", "f32"), 3, 1, 20, 48, 100, had=(True, True))
    h.store(0, 100)
    for path in "attention.flash.attend", "attention.plain.attend":
        y, expected = h.attend(0, 100, path=path), h.reference()
        np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
    plain = Cache(("f32", "f32"), 3, 1, 20, 48, 100)
    plain.store(0, 100)
    np.testing.assert_allclose(plain.attend(0, 100), y, atol=1e-5)


def test_sizes_are_the_types_own():
    bits = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_0": 6.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}
    for name in KV_TYPES:
        expected = 128 + 4 if name == "q8_KV" else 16 * bits.get(name, 4.5)
        assert kv_type(name).row_bytes(128) == expected
    with pytest.raises(IkpyError, match="KV cache type q4_K: accepted are f32, f16, bf16, q8_0, q8_KV, q6_0"):
        kv_type("q4_K")
    assert kv_type("Q8_kv").name == "q8_KV"


TOKENS = np.random.default_rng(0).integers(0, 48, 300)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama.write(
        tmp_path_factory.mktemp("kv") / "m.gguf", types=("F32",), n_head=4, n_head_kv=2, head_dim=32
    )


@pytest.mark.parametrize(("k", "v", "had"), [("q8_0", "q8_0", False), ("q4_0", "iq4_nl", True)])
def test_model(model, k, v, had, caplog):
    """Logits near those of an exact cache; prompt, tokens, threads agree; the plain kernel nearly; sizes are said."""

    def logits(*sizes, **options):
        with session(model, n_ctx=512, **options) as s:
            return np.concatenate([s.eval(part, all_logits=True) for part in np.split(TOKENS, np.cumsum(sizes))])

    exact = logits(cache_type_k="f32", cache_type_v="f32")
    how = {"cache_type_k": k, "cache_type_v": v, "khad": had, "vhad": had}
    with caplog.at_level(logging.INFO, "ikpy.session"):
        y = logits(threads=2, **how)
    assert any(f"K ({k}" in line and f"V ({v}" in line and "KV self size = " in line for line in caplog.messages)
    np.testing.assert_array_equal(logits(80, 1, 1, 3, 100, threads=1, **how), y)
    spread = exact.std()
    assert np.abs(y - exact).mean() < (0.01 if k == "q8_0" else 0.15) * spread
    # 8-bit queries in the one and exact ones in the other; layers after the first round other keys to 4 bits then
    assert np.abs(logits(flash_attn=False, **how) - y).mean() < (0.01 if k == "q8_0" else 0.02) * spread
    np.testing.assert_allclose(logits(flash_attn=False, cache_type_k="f32", cache_type_v="f32"), exact, atol=1e-3)


def test_what_cannot_be_kept_is_refused(tmp_path, model):
    with pytest.raises(IkpyError, match="KV cache type q3_K: accepted are f32"):
        session(model, cache_type_k="q3_K")
    long = tiny_llama.write(tmp_path / "long.gguf", types=("F32",), n_head=2, n_head_kv=2, head_dim=1040)
    with pytest.raises(
        IkpyError,
        match="-ctv q4_0: the model's heads have 1040 elements, accepted are up to 1024; use f16, bf16 or f32",
    ):
        session(long, cache_type_v="q4_0")
    with pytest.raises(IkpyError, match="-khad: the model's heads have 1040"):
        session(long, khad=True)
    with session(long, cache_type_k="bf16", cache_type_v="f32", flash_attn=False) as s:
        assert np.isfinite(s.eval([1, 2, 3])).all()


def test_parts_of_the_cache():
    """What session files hold: whole heads, one after the other, cover the cache."""
    layers = {i: kv_cache.Layer(512, 0, 4, 2, 64, 32, kv_cache.Types("q8_0", "q4_1")) for i in (0, 3)}
    kv = kv_cache.KVCache(layers)
    parts = [part for i in layers for part in kv.parts(i, 512)]
    assert [len(part) for part in parts[:4]] == [512 * 68, 512 * 68, 512 * 20, 512 * 20]
    assert sum(map(len, parts)) == kv.n_bytes
    assert [len(part) for part in kv.parts(3, 200)] == [256 * 68, 256 * 68, 256 * 20, 256 * 20]
