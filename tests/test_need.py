"""What steps need at least, against sums made by hand: windows, latents of both kinds, what prompts expand."""

import pytest
import tiny_deepseek2
import tiny_gemma3
from sessions import session

from ikpy_llm.engine.measure import need
from ikpy_llm.engine.measure.need import Need
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.derive import roof

U7 = "gmacs_u7" if jit.target.current().pairs16 else "gmacs_u8"  # codes of 8 bits with bounded queries


def test_time_at_the_rates():
    """10 ms of weights (bytes), then 4 + 2 ms of products, which take longer than 5 ms of keys and values."""
    rates = {"gbps": 100.0, "gmacs": 1000.0, "gmacs_f32": 50.0, "gmacs_s16": 100.0}
    products = {"gmacs_f32": 2 * 10**8, "gmacs_s16": 2 * 10**8}
    assert Need(10**9, 9 * 10**9, 5 * 10**8, products).seconds(rates) == pytest.approx(0.016)
    assert Need(10**9, 20 * 10**9, 7 * 10**8, products).seconds(rates) == pytest.approx(0.027)


def test_windows_and_types(tmp_path):
    """7 layers of 4 heads of 32, 6 of which see 16 positions; a prompt's rows see what came before them."""
    path, macs = tiny_gemma3.write(tmp_path / "m.gguf"), 4 * 32  # of a position, with keys or with values
    with session(path, n_ctx=1024) as s:
        one = need.of_step(s, 1, 100, 1)
        assert one.attention == {"gmacs_f32": (6 * 16 + 101) * 2 * macs}
        assert one.kv_bytes == (6 * 16 + 101) * 2 * 2 * 2 * 32
        assert (one.bytes, one.macs) == s.touched()
        prompt = need.of_step(s, 40, 300, 0)
        assert prompt.attention == {"gmacs_f32": (6 * 16 * 40 + sum(range(301, 341))) * 2 * macs}
        head = 64 * tiny_gemma3.N_VOCAB
        assert prompt.macs == 40 * (one.macs - head) and need.of_step(s, 40, 300, 1).macs == prompt.macs + head
    for fa, expected in (True, {U7: 197 * macs, "gmacs_s16": 197 * macs}), (False, {"gmacs_f32": 197 * 2 * macs}):
        with session(path, n_ctx=1024, cache_type_k="q8_0", cache_type_v="q5_1", flash_attn=fa) as s:
            assert need.of_step(s, 1, 100, 1).attention == expected
            assert [roof.rate_name(kind) for kind in need.classes_of(s.program("gen").records)] == list(expected)


def test_latents(tmp_path, monkeypatch):
    """3 layers of 4 heads; a token multiplies with latents of 64 + 32, a prompt with what is made of all of them."""
    monkeypatch.setitem(tiny_deepseek2.SIZES, "n_rot", 32)
    path = tiny_deepseek2.write(tmp_path / "m.gguf")
    with session(path, cache_type_k="q8_0") as s:
        one, prompt, later = (need.of_step(s, *step, 1) for step in ((1, 9), (20, 0), (20, 50)))
        assert one.attention == {U7: 3 * 4 * 10 * 96, "gmacs_s16": 3 * 4 * 10 * 64}
        assert (one.bytes, one.macs) == s.touched() and one.kv_bytes == 3 * 10 * 96 // 32 * 34
        pairs = 20 * 50 + sum(range(1, 21))
        assert later.attention == {"gmacs_f32": 3 * 4 * pairs * (64 + 32)}
        assert later.macs - prompt.macs == 3 * 50 * 64 * 4 * (32 + 32)


def test_rates_are_measured_by_name():
    found = roof.measure(1, 0.001, 255, (roof.WORDS, roof.FLOAT, roof.WORDS))
    assert set(found) == {"gbps", "gmacs", "gmacs_s16", "gmacs_f32"} and all(rate > 0 for rate in found.values())
    assert roof.attention_classes("f16", "q4_0") == (roof.FLOAT, roof.WORDS)
    assert [roof.rate_name(kind) for kind in (15, 31, 63, 127, 255)] == [f"gmacs_u{bits}" for bits in (4, 5, 6, 7, 8)]
