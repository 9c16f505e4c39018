"""Quantized latents: rows are stored as the type's quantizer makes them; attention over them, whose values are the
first columns of the keys, equals float64 NumPy; a model answers as with the f16 cache in every mode that keeps them.
"""

import numpy as np
import pytest
import tiny_deepseek2
from reference_deepseek2 import ReferenceDeepseek2
from reference_kv import cells, quantized
from sessions import session
from test_kv_types import Cache, tolerance

from ikpy_llm.engine.cache import session_file
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.attention.layout import n_counters, plain_scratch_bytes, scratch_bytes
from ikpy_llm.kernels.compiler.jit import Kernel, call
from ikpy_llm.kernels.kv.types import kv_type

RANK, N_ROT = 96, 32
TYPES = ["q8_0", "q8_KV", "q6_0", "q5_1", "q4_0", "iq4_nl"]  # 8 bits, a scale per row, planes, minimums, a table


class Latents(Cache):
    """One row for each position; `c` before its norm, `pe` turned by no angle."""

    def __init__(self, name, n_head, n):
        super().__init__((name, name), n_head, 1, RANK + N_ROT, RANK, n)
        self.caches = self.caches[:1]
        self.w = np.random.default_rng(1).uniform(0.5, 2, RANK).astype(np.float32)
        c = self.k[:, 0, :RANK].astype(np.float64)
        normed = c / np.sqrt((c**2).mean(1, keepdims=True)) * self.w
        self.rows = np.concatenate([normed, self.k[:, 0, RANK:]], 1).astype(np.float32)

    def store(self, pos0, n, nth=1):
        state, part = np.array([n, pos0, n, 0], np.int64), self.k[pos0 : pos0 + n, 0]
        table = np.tile(np.float32([1, 0]), (self.n, N_ROT // 2))
        words = part[:, :RANK].copy(), part[:, RANK:].copy(), *self.bytes(), RANK, N_ROT, self.n_cells, self.w, 0.0
        call(Kernel("attention.mla.latent_store", style="norm", k_type=self.types[0]), *words, table, state, nth=nth)
        assert (self.caches[0][:64] == 77).all() and (self.caches[0][-64:] == 77).all()

    def attend(self, pos0, n, nth=1, path="attention.flash.attend"):
        state, counters = np.array([n, pos0, n, 0], np.int64), np.zeros(n_counters(self.n_head), np.int64)
        n_bytes = scratch_bytes(n, self.n_head, self.n_cells, RANK)
        if path != "attention.flash.attend":
            n_bytes = plain_scratch_bytes(nth, self.n_cells)
        y, q = np.full((n, self.n_head, RANK), np.nan, np.float32), self.q[pos0 : pos0 + n].copy()
        words = q, *self.bytes(), *self.bytes(), y, self.n_head, 1, 0, self.n_head, self.n_cells, 0
        spec = Kernel(path, k_dim=RANK + N_ROT, v_dim=RANK, latent=True, k_type=self.types[0])
        scratch = np.full(n_bytes // 4, np.nan, np.float32)
        call(spec, *words, float(self.dims[0] ** -0.5), 0.0, scratch, counters, state, nth=nth)
        assert not counters.any()
        return y

    def kept(self):
        k = cells(*self.bytes(), self.types[0], 1, self.n_cells, RANK + N_ROT, True)[0, : self.n]
        return [k[:, None].astype(np.float64), k[:, None, :RANK].astype(np.float64)]

    def latents(self, first, width, nth):
        y = np.full((self.n, width), np.nan, np.float32)
        spec = Kernel("attention.mla.latents", k_dim=RANK + N_ROT, k_type=self.types[0])
        call(spec, *self.bytes(), first, y, width, np.array([self.n, 0, 0, 0], np.int64), nth=nth)
        return y


@pytest.mark.parametrize("name", TYPES)
def test_attention_over_latents(name):
    """In steps and by threads that share panels; long enough for two chunks; the plain kernel; rows as they expand."""
    h = Latents(name, 11, 300)
    h.store(0, 300, nth=3)
    once = h.bytes()[0].copy()
    h.clear()
    h.caches = h.caches[:1]
    for pos0, n in (0, 1), (1, 6), (7, 255), (262, 38):
        h.store(pos0, n, nth=2)
    assert (h.bytes()[0] == once).all()
    k = h.kept()[0][:, 0]
    expected = quantized(h.rows, name)  # a last bit of the norm may round the other way
    assert (np.abs(k - expected) <= 1e-6 * np.abs(expected)).mean() > 0.98 and np.abs(k - expected).mean() < 1e-3
    for first, width in (0, RANK), (RANK, N_ROT):
        np.testing.assert_allclose(h.latents(first, width, 2), k[:, first : first + width], rtol=1e-6)
    y, expected = h.attend(0, 300, nth=2), h.reference()
    np.testing.assert_allclose(y, expected, atol=tolerance(h.types) * np.abs(expected).max())
    for pos0, n, nth in (0, 1, 1), (63, 2, 2), (255, 3, 3), (280, 20, 1), (299, 1, 2):
        assert (h.attend(pos0, n, nth=nth) == y[pos0 : pos0 + n]).all(), (pos0, n, nth)
    plain, expected = h.attend(0, 300, path="attention.plain.attend", nth=2), h.reference(exact=True)
    np.testing.assert_allclose(plain, expected, atol=1e-5 * np.abs(expected).max())


TOKENS = np.random.default_rng(3).integers(0, tiny_deepseek2.N_VOCAB, 130).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_deepseek2.SIZES, "n_rot", 32)
        return tiny_deepseek2.write(tmp_path_factory.mktemp("latents") / "m.gguf", types=("F32",), n_expert=4, n_used=4)


class Rounded(ReferenceDeepseek2):
    """With latents that went through a q8_0 cache."""

    def kept(self, rows):
        return quantized(rows, "q8_0").astype(np.float64)


def test_model(path, tmp_path, caplog):
    """Modes that multiply with latents (whose queries have 8 bits then) and that expand them; prompts, tokens, threads;
    -fa off, where queries are exact; what the cache takes; sessions that are read back.
    """
    expected, how = Rounded(path).logits(TOKENS), {"n_ctx": 256, "cache_type_k": "q8_0"}
    for mla, limit in (1, 0.02), (2, 3e-3), (3, 3e-3):
        with caplog.at_level("INFO", "ikpy.session"), session(path, mla=mla, threads=2, **how) as s:
            y = s.eval(TOKENS, all_logits=True)
            assert s.kv.n_bytes == 3 * 256 * kv_type("q8_0").row_bytes(96)
            s.rewind(70)
            again = np.concatenate([s.eval(TOKENS[70:100], all_logits=True), s.eval(TOKENS[100:], all_logits=True)])
            session_file.save(tmp_path / "s.bin", s, TOKENS)
        np.testing.assert_array_equal(again, y[70:])
        assert np.abs(y - expected).mean() < limit * expected.std()
        with session(path, mla=mla, cache_type_v="q8_0", **how) as s:  # -ctv names the same cache
            assert session_file.load(tmp_path / "s.bin", s) == TOKENS
            s.rewind(129)
            last = s.eval(TOKENS[129:])[0]
        assert (last == y[-1]).all() == (mla < 3)
        assert np.abs(last - expected[-1]).mean() < 0.04 * expected.std()
    assert any("K (q8_0): 0.07 MiB, V (f16): 0.00 MiB" in line for line in caplog.messages)
    with session(path, mla=1, flash_attn=False, **how) as s:
        assert np.abs(s.eval(TOKENS, all_logits=True) - expected).mean() < 1e-3 * expected.std()


@pytest.mark.parametrize(("name", "limits"), [("f32", (2e-5, 2e-3)), ("bf16", (1e-2, 1e-2))])
def test_plain_latents(path, name, limits):
    """Rows multiply with latents (-mla 1), or with f16 keys and values that are made of them (2)."""
    expected = ReferenceDeepseek2(path).logits(TOKENS)
    for mla, limit in zip((1, 2), limits, strict=True):
        with session(path, mla=mla, cache_type_k=name, n_ctx=256) as s:
            y = s.eval(TOKENS, all_logits=True)
            assert s.kv.n_bytes == 3 * 256 * kv_type(name).row_bytes(96)
            s.rewind(129)
            np.testing.assert_array_equal(s.eval(TOKENS[129:])[0], y[129])
        assert np.abs(y - expected).mean() < limit * expected.std()


def test_what_is_refused(path, tmp_path):
    for options, why in (
        ({"cache_type_k": "bf16", "cache_type_v": "f32"}, "-ctk bf16 -ctv f32: latents .DeepSeek. are kept in one"),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, "-ctk q8_0 -ctv q4_0: latents"),
        ({"cache_type_k": "q8_0", "khad": True}, "-ctk q8_0 -ctv f16 -khad: latents"),
        ({"cache_type_k": "q8_0", "mla": 0}, "with -mla 0 DeepSeek's keys and values are f16; use -mla 1 to 3"),
    ):
        with pytest.raises(IkpyError, match=why) as error:
            session(path, **options)
        assert "\n" not in str(error.value)
    odd = tiny_deepseek2.write(tmp_path / "odd.gguf")
    with pytest.raises(
        IkpyError, match="-ctk q8_0: the model's latents have 64 and 16 elements, accepted are multiples"
    ):
        session(odd, cache_type_k="q8_0")
