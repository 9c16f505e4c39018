"""Sampler steps against their definitions; reproducibility; guards."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikpy_llm.errors import IkpyError
from ikpy_llm.sampling.sampler import Sampler, SamplerOptions, uniform

RNG = np.random.default_rng(1)
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temp": 1.0}


def logits_of(n=1000, scale=3.0):
    return RNG.normal(0, scale, n).astype(np.float32)


def drawn(options: dict, logits, n=400) -> np.ndarray:
    """Tokens that `n` draws give."""
    sampler = Sampler(SamplerOptions(**{"seed": 1} | options), len(logits))
    return np.array([sampler.sample(logits) for _ in range(n)])


def softmax(x):
    weights = np.exp(x.astype(np.float64) - x.max())
    return weights / weights.sum()


def test_greedy_is_the_largest_and_quick():
    logits = logits_of(50_000)
    assert set(drawn({"temp": 0}, logits, 5)) == {logits.argmax()}
    sampler = Sampler(SamplerOptions(temp=0), len(logits))
    best = min(_timed(sampler, logits) for _ in range(20))
    assert best < 2e-3  # 0.01 ms on a quiet machine


def _timed(sampler, logits):
    start = time.perf_counter()
    sampler.sample(logits)
    return time.perf_counter() - start


def test_top_k_of_equal_logits_takes_the_first_ids():
    assert set(drawn(OFF | {"top_k": 3}, np.zeros(1000, np.float32))) == {0, 1, 2}


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    counts = np.bincount(drawn(OFF, logits, 20_000), minlength=4) / 20_000
    assert np.abs(counts - [0.5, 0.3, 0.15, 0.05]).max() < 0.015
    hot = softmax(logits / 2)
    counts = np.bincount(drawn(OFF | {"temp": 2.0}, logits, 20_000), minlength=4) / 20_000
    assert np.abs(counts - hot).max() < 0.015


def test_only_recent_tokens_are_penalized():
    logits = np.array([2.0, 1.9, 0.0], np.float32)
    for last_n, expected in ((0, 0), (1, 0), (2, 1), (-1, 1)):
        sampler = Sampler(SamplerOptions(temp=0, repeat_penalty=2.0, repeat_last_n=last_n), 3)
        sampler.accept(0)
        sampler.accept(2)
        assert sampler.sample(logits) == expected


def test_same_seed_same_tokens():
    logits = logits_of()
    a, b = drawn({"seed": 7}, logits), drawn({"seed": 7}, logits)
    assert (a == b).all()
    assert (a != drawn({"seed": 8}, logits)).any()
    assert (drawn({"seed": 2**64 - 2}, logits) == drawn({"seed": -2}, logits)).all()
    fresh = Sampler(SamplerOptions(), 10)
    again = Sampler(SamplerOptions(seed=fresh.seed), 10)
    x = logits_of(10)
    assert [fresh.sample(x) for _ in range(50)] == [again.sample(x) for _ in range(50)]


def test_uniform_is_uniform():
    x = np.array([uniform(3, i) for i in range(20_000)])
    assert x.min() >= 0 and x.max() < 1 and abs(x.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.03
    assert uniform(0, 0) == (0xE220A8397B1DCDAF >> 11) * 2.0**-53  # SplitMix64's published first output for seed 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temp", [0, 0.8])
def test_bad_logits_are_refused(bad, temp):
    logits = logits_of()
    logits[500] = bad
    with pytest.raises(IkpyError, match="non-finite"):
        Sampler(SamplerOptions(temp=temp), 1000).sample(logits)


def test_masked_logits():
    logits = np.full(100, -np.inf, np.float32)
    with pytest.raises(IkpyError, match="non-finite"):
        Sampler(SamplerOptions(), 100).sample(logits)
    logits[7] = -3
    assert set(drawn({}, logits, 50)) == {7} and set(drawn(OFF, logits, 50)) == {7}


def test_wrong_shape_and_wrong_options():
    with pytest.raises(IkpyError, match="shape"):
        Sampler(SamplerOptions(), 10).sample(np.zeros(11, np.float32))
    for wrong in ({"temp": float("nan")}, {"top_k": 1.5}, {"repeat_penalty": 0.0}, {"top_p": "x"}, {"seed": True}):
        with pytest.raises(IkpyError, match=next(iter(wrong))):
            SamplerOptions(**wrong)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=200),
    st.integers(-1, 300),
    st.floats(0, 1.5),
    st.floats(0, 1),
    st.floats(1e-3, 100),
)
def test_always_a_token(values, k, p, m, temp):
    options = SamplerOptions(top_k=k, top_p=p, min_p=m, temp=temp, repeat_penalty=1.1, seed=3)
    sampler = Sampler(options, len(values))
    for _ in range(5):
        token = sampler.sample(np.array(values, np.float32))
        assert 0 <= token < len(values)
        sampler.accept(token)
