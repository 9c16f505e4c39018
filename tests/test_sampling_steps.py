"""Every sampler step against a plain NumPy loop over the definition, on random logits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikpy_llm.errors import IkpyError
from ikpy_llm.sampling import choice, history
from ikpy_llm.sampling.options import CHAINS, LETTERS, bias_of, chain_of, chain_of_letters, file_defaults
from ikpy_llm.sampling.sampler import Sampler, SamplerOptions
from ikpy_llm.sampling.steps import STEPS, USED, Candidates, most_likely

RNG = np.random.default_rng(5)


def logits_of(n=200, scale=3.0):
    return RNG.normal(0, scale, n).astype(np.float32)


def softmax(x):
    weights = np.exp(np.asarray(x, np.float64) - np.max(x))
    return weights / weights.sum()


def after(name, logits, text=(), **options):
    """(ids, logits) that a step leaves, from high to low."""
    sampler = Sampler(SamplerOptions(seed=1, **options), len(logits))
    for token in text:
        sampler.accept(token)
    c = STEPS[name](Candidates(None, logits), sampler.options, sampler).order()
    assert len(c.ids) == len(c.logits) > 0 and len(set(c.ids.tolist())) == len(c.ids)
    assert (np.diff(c.logits) <= 0).all()
    return c.ids.tolist(), c.logits


def ordered(logits):
    return np.argsort(-logits, kind="stable").tolist()


def test_options_and_chains():
    o = SamplerOptions()
    assert o.chain() == tuple("dry top_k tfs_z typical_p top_p min_p xtc top_n_sigma temperature adaptive_p".split())
    assert SamplerOptions(dialect="llama").chain() == tuple(
        "penalties dry top_n_sigma top_k typical_p top_p min_p xtc temperature".split()
    )
    assert (o.temp, o.top_k, o.top_p, o.min_p, o.tfs_z, o.typical_p, o.top_n_sigma) == (0.8, 40, 0.95, 0.05, 1, 1, 0)
    assert (o.xtc_probability, o.xtc_threshold, o.min_keep, o.penalize_nl) == (0, 1, 0, False)
    assert (o.repeat_penalty, o.repeat_last_n, o.presence_penalty, o.frequency_penalty, o.seed) == (1, 64, 0, 0, -1)
    assert (o.dry_multiplier, o.dry_base, o.dry_allowed_length, o.dry_penalty_last_n) == (0, 1.75, 2, -1)
    assert o.dry_sequence_breakers == ("\n", ":", '"', "*")
    assert (o.mirostat, o.mirostat_lr, o.mirostat_ent, o.adaptive_target, o.adaptive_decay) == (0, 0.1, 5, -1, 0.9)
    assert chain_of("top-k; typ_p;temp;nucleus;tfs") == ("top_k", "typical_p", "temperature", "top_p", "tfs_z")
    assert chain_of_letters("ns", "ik") == ("top_n_sigma", "dist")
    assert chain_of_letters("es", "llama") == ("penalties", "top_n_sigma")
    for dialect, letters in CHAINS.items():
        assert {LETTERS[dialect][x] for x in letters} <= set(STEPS)
    with pytest.raises(IkpyError, match="no step is called 'topk'"):
        SamplerOptions(samplers="topk")
    with pytest.raises(IkpyError, match="'n' is no step of llama"):
        chain_of_letters("n", "llama")
    assert [name for name in o.chain() if USED[name](o)] == ["top_k", "top_p", "min_p", "temperature"]


def test_logit_bias_words():
    assert bias_of("15043+1") == (15043, 1.0) and bias_of("7-0.5") == (7, -0.5)
    assert bias_of("7-inf") == bias_of("7false") == (7, -math.inf)
    for wrong in ("7", "+1", "x+1", "7+inf", "7+-1"):
        with pytest.raises(IkpyError, match="logit-bias"):
            bias_of(wrong)


def test_defaults_in_a_file():
    meta = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.sequence": "kpt"}
    assert file_defaults(meta) == {"temp": 0.6, "top_k": 20, "samplers": "top_k;top_p;temperature"}
    assert file_defaults({}) == {}
    with pytest.raises(IkpyError, match="top_k"):
        file_defaults({"general.sampling.top_k": "many"})


@pytest.mark.parametrize("n", [5, 64, 1000, 6401])
@pytest.mark.parametrize("k", [1, 2, 40, 5000])
def test_top_k(n, k):
    logits = logits_of(n)
    assert after("top_k", logits, top_k=k)[0] == ordered(logits)[:k]
    assert set(ordered(logits)[:k]) <= set(most_likely(logits, k).tolist())
    assert after("top_k", logits, top_k=k, min_keep=3)[0] == ordered(logits)[: max(k, 3)]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("keep", [0, 5])
def test_top_p(p, keep):
    logits = logits_of()
    order, total, kept = ordered(logits), 0.0, []
    for token in order:
        kept.append(token)
        total += softmax(logits)[token]
        if total >= p and len(kept) >= keep:
            break
    assert after("top_p", logits, top_p=p, min_keep=keep)[0] == kept


@pytest.mark.parametrize("p", [0.01, 0.2, 1.0])
def test_min_p(p):
    logits = logits_of()
    probability = softmax(logits)
    expected = [t for t in ordered(logits) if probability[t] >= p * probability.max() * (1 - 1e-6)]
    assert after("min_p", logits, min_p=p)[0] == expected
    assert len(after("min_p", logits, min_p=1.0, min_keep=4)[0]) == 4


@pytest.mark.parametrize("z", [0.0, 0.3, 0.9, 0.99])
def test_tail_free(z):
    logits = logits_of()
    p = softmax(logits)[ordered(logits)]
    first = [p[i] - p[i + 1] for i in range(len(p) - 1)]
    second = [abs(first[i] - first[i + 1]) for i in range(len(first) - 1)]
    second = [x / sum(second) for x in second]
    n, total = len(p), 0.0
    for i, x in enumerate(second):
        total += x
        if total > z and i >= 1:
            n = i
            break
    assert after("tfs_z", logits, tfs_z=z)[0] == ordered(logits)[:n]
    assert len(after("tfs_z", np.zeros(2, np.float32), tfs_z=z)[0]) == 2


@pytest.mark.parametrize("p", [0.0, 0.2, 0.8, 0.99])
def test_typical(p):
    logits = logits_of()
    probability = softmax(logits)
    entropy = -(probability * np.log(probability)).sum()
    kept, total = [], 0.0
    for token in sorted(range(len(logits)), key=lambda t: abs(-math.log(probability[t]) - entropy)):
        kept.append(token)
        total += probability[token]
        if total > p:
            break
    assert sorted(after("typical_p", logits, typical_p=p)[0]) == sorted(kept)


@pytest.mark.parametrize("n", [0.5, 1.0, 3.0])
def test_top_n_sigma(n):
    logits = logits_of()
    bound = logits.max() - n * logits.astype(np.float64).std()
    assert after("top_n_sigma", logits, top_n_sigma=n)[0] == [t for t in ordered(logits) if logits[t] >= bound]
    logits[::2] = -np.inf  # what is forbidden does not count
    rest = logits[1::2].astype(np.float64)
    expected = [t for t in ordered(logits) if logits[t] >= rest.max() - n * rest.std()]
    assert after("top_n_sigma", logits, top_n_sigma=n)[0] == expected
    assert len(after("top_n_sigma", logits_of(3), top_n_sigma=n)[0]) == 3


def test_xtc():
    logits = np.log(np.array([0.4, 0.05, 0.3, 0.15, 0.1], np.float32))
    cut = {"xtc_probability": 1.0, "xtc_threshold": 0.12}
    assert after("xtc", logits, **cut)[0] == [3, 4, 1]  # 0.4 and 0.3 go, 0.15 is the last likely one
    assert after("xtc", logits, **cut, min_keep=4)[0] == [0, 2, 3, 4, 1]
    assert after("xtc", logits, xtc_probability=1.0, xtc_threshold=0.35)[0] == [0, 2, 3, 4, 1]
    sampler = Sampler(SamplerOptions(seed=3, xtc_probability=0.3, xtc_threshold=0.12), 5)
    cuts = [len(STEPS["xtc"](Candidates(None, logits), sampler.options, sampler).logits) == 3 for _ in range(2000)]
    assert abs(np.mean(cuts) - 0.3) < 0.04
    assert not USED["xtc"](SamplerOptions(xtc_probability=1.0, xtc_threshold=0.51))


def test_temperature_and_dynatemp():
    logits = logits_of()
    assert np.allclose(softmax(after("temperature", logits, temp=0.7)[1]), softmax(np.sort(logits)[::-1] / 0.7))
    p = softmax(logits)
    entropy = -(p * np.log(p)).sum() / math.log(len(p))
    temp = 0.5 + 1.0 * entropy**1.5
    got = after("temperature", logits, temp=1.0, dynatemp_range=0.5, dynatemp_exponent=1.5)[1]
    assert np.allclose(softmax(got), softmax(np.sort(logits)[::-1] / temp))
    sharp = np.array([0, -1e4, -1e4], np.float32)  # no entropy: the lowest temperature, here 0
    ids, got = after("temperature", sharp, temp=0.5, dynatemp_range=0.5)
    assert ids[0] == 0 and np.isfinite(got).all() and softmax(got)[0] == 1


def test_penalties():
    logits = np.array([2.0, 1.9, -1.0, -1.1, 0.5], np.float32)
    ids, got = after("penalties", logits, (0, 2), repeat_penalty=1.5)
    assert dict(zip(ids, got.round(5).tolist(), strict=True)) == pytest.approx(
        {0: 2 / 1.5, 1: 1.9, 2: -1.5, 3: -1.1, 4: 0.5}, abs=1e-4
    )
    ids, got = after("penalties", logits, (0, 0, 1, 99), presence_penalty=0.5, frequency_penalty=0.25)
    assert dict(zip(ids, got.tolist(), strict=True)) == pytest.approx({0: 1.0, 1: 1.15, 2: -1.0, 3: -1.1, 4: 0.5})
    assert logits[0] == 2.0  # the caller's array is left alone


class Vocab:
    """Twelve tokens; a line end is token 10, `a:` is 11."""

    n_tokens = 12
    pieces = (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"x-", b"-y", b"\n", b"a:")

    def token_bytes(self, token, skip_special=True):
        return self.pieces[token]

    def encode(self, text, add_special=True):
        return {"\n": [10], "-y": [9], "y": [9]}[text]


def test_line_ends_are_not_penalized():
    logits = np.array([1.0] * 10 + [3.0, 0.0], np.float32)
    for penalize, expected in ((False, 10), (True, 0)):
        o = SamplerOptions(temp=0, repeat_penalty=9.0, penalize_nl=penalize)
        sampler = Sampler(o, 12, Vocab())
        sampler.accept(10)
        assert sampler.sample(logits) == expected


def slow_dry(text, allowed, breakers=()):
    """Token -> longest repeat that it would continue, by the definition; breakers are single tokens."""
    n = len(text)
    limit = next((i for i in range(n) if text[n - 1 - i] in breakers), n)
    found = {}
    for end in range(1, n):  # text[:end] ends like the text, text[end] follows
        length = 0
        while length < min(end, limit) and text[end - 1 - length] == text[n - 1 - length]:
            length += 1
        if length >= allowed:
            found[text[end]] = max(found.get(text[end], 0), length)
    return {t: length for t, length in found.items() if t not in breakers} if n > allowed and limit >= allowed else {}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 3), st.sets(st.integers(0, 3), max_size=1))
def test_dry_repeats(text, allowed, breakers):
    o = SamplerOptions(dry_multiplier=1.0, dry_allowed_length=allowed)
    got = history.dry_repeats(np.array(text, np.int64), o, {t: [()] for t in breakers})
    assert got == slow_dry(text, allowed, breakers)


def test_dry_penalty_and_breakers():
    text = [0, 1, 2, 3, 7, 1, 2, 3]  # 1 2 3 again: 7 would be the fourth
    logits = np.zeros(12, np.float32)
    ids, got = after("dry", logits, text, dry_multiplier=0.8, dry_base=1.75, dry_allowed_length=2)
    assert dict(zip(ids, got.tolist(), strict=True))[7] == pytest.approx(-0.8 * 1.75)
    assert ids[-1] == 7 and got[:-1].max() == got[:-1].min() == 0
    assert after("dry", logits, text, dry_multiplier=1.0, dry_penalty_last_n=4)[1].min() == 0  # the first copy is gone
    found = history.breakers_of(("\n", ":", "-y"), Vocab())
    assert found == {10: [()], 11: [()], 9: [()], 8: [(9,)]}
    assert history.reach(np.array([1, 8, 9, 2, 3]), found) == 2
    assert history.reach(np.array([1, 8, 2, 3]), found) == 4
    long = after("dry", np.zeros(2, np.float32), [0] * 3000, dry_multiplier=5.0)[1]
    assert np.isfinite(long).all()


def test_mirostat():
    logits = (-1.2 * np.log(np.arange(1, 2001))).astype(np.float32)  # Zipf's law
    for version in (1, 2):
        low, high = (
            np.mean([_surprise(logits, s) for s in _tokens(logits, mirostat=version, mirostat_ent=tau, temp=1.0)])
            for tau in (3.0, 6.0)
        )
        assert low < high
        assert abs(low - 3.0) < 1.0 and abs(high - 6.0) < 1.0, (version, low, high)
    assert len(set(_tokens(np.zeros(9, np.float32), mirostat=1))) > 3  # a flat distribution has no slope
    c = Candidates(None, logits).order()
    state = Sampler(SamplerOptions(mirostat=2, seed=1), 2000)
    at = choice.mirostat_2(c, state.options, state)
    kept = [p for p in softmax(c.logits) if -math.log2(p) <= 10]
    expected = 10 - 0.1 * (-math.log2(kept[at] / sum(kept)) - 5)
    assert state.mu == pytest.approx(expected)


@pytest.mark.parametrize("slope", [0.7, 1.3, 2.0])
@pytest.mark.parametrize("mu", [1.0, 4.0, 8.0])
def test_mirostat_1_takes_k(slope, mu, monkeypatch):
    logits = (-slope * np.log(np.arange(1, 501))).astype(np.float32)
    state = Sampler(SamplerOptions(mirostat=1), 500)
    state.mu, kept = mu, []
    monkeypatch.setattr(choice, "at_random", lambda c, o, s: kept.append(len(c.ids)) or 0)
    choice.mirostat_1(Candidates(None, logits), state.options, state)
    k = ((slope - 1) * 2**mu / (1 - 500 ** (1 - slope))) ** (1 / slope)
    assert abs(kept[0] - min(max(k, 1), 500)) <= 1


def _tokens(logits, n=600, **options):
    sampler = Sampler(SamplerOptions(seed=4, **options), len(logits))
    return [sampler.sample(logits) for _ in range(n)][n // 2 :]


def _surprise(logits, token):
    return -math.log2(softmax(logits)[token])


def test_adaptive_p():
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temp": 1.0}
    for target in (0.1, 0.35):
        for current in (False, True):
            tokens = _tokens(logits, 2000, adaptive_target=target, adaptive_updt_w_cur=current, **off)
            assert abs(softmax(logits)[tokens].mean() - target) < 0.05
    sampler = Sampler(SamplerOptions(adaptive_target=0.3), 5)
    c = STEPS["adaptive_p"](Candidates(None, logits).order(), sampler.options, sampler)
    d = np.abs(softmax(logits) - 0.3) / 0.3
    assert np.allclose(c.logits, 5 - 10 * d * d / (1 + d))
    sampler.adaptive.update(0.5)
    assert sampler.adaptive.weighted == pytest.approx(0.9 * 3 + 0.5) and sampler.adaptive.total == pytest.approx(10)


def test_logit_bias_and_banned():
    logits = logits_of(50)
    best = int(logits.argmax())
    assert Sampler(SamplerOptions(temp=0, logit_bias={3: 100.0}), 50).sample(logits) == 3
    second = ordered(logits)[1]
    assert Sampler(SamplerOptions(temp=0, logit_bias={best: -math.inf}), 50).sample(logits) == second
    assert Sampler(SamplerOptions(temp=0), 50, banned={best, 99}).sample(logits) == second
    with pytest.raises(IkpyError, match="token 50 does not exist"):
        Sampler(SamplerOptions(logit_bias={50: 1.0}), 50)
    with pytest.raises(IkpyError, match="forbid every one"):
        Sampler(SamplerOptions(), 50, banned=range(50)).sample(logits)
    for wrong in ({-1: 1.0}, {"x": 1.0}, {1: math.inf}, {1: math.nan}):
        with pytest.raises(IkpyError, match="logit_bias"):
            SamplerOptions(logit_bias=wrong)


def test_order_of_steps_matters():
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.05, 0.05], np.float32))
    hot = {"top_p": 0.6, "temp": 5.0}
    cut_first = {*_tokens(logits, 400, samplers="top_p;temperature", **hot)}
    hot_first = {*_tokens(logits, 400, samplers="temperature;top_p", **hot)}
    assert cut_first == {0, 1} and len(hot_first) > 2


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=150),
    st.permutations(sorted(STEPS)),
    st.integers(0, 2),
    st.integers(0, 9),
    st.floats(0, 1),
    st.floats(0.01, 3),
    st.sampled_from([-1.0, 0.0, 0.4, 1.0]),
)
def test_always_a_token_whatever_the_chain(values, chain, mirostat, keep, x, temp, adaptive):
    options = SamplerOptions(
        samplers=";".join(chain), mirostat=mirostat, min_keep=keep, temp=temp, dynatemp_range=x, tfs_z=x, typical_p=x,
        top_p=x, top_k=5, min_p=x, top_n_sigma=x, xtc_probability=x, xtc_threshold=x / 2, repeat_penalty=1 + x,
        presence_penalty=x, frequency_penalty=-x, dry_multiplier=x, adaptive_target=adaptive, seed=3,
    )  # fmt: skip
    sampler = Sampler(options, len(values), banned=[0] if len(values) > 1 else [])
    for _ in range(6):
        token = sampler.sample(np.array(values, np.float32))
        assert (len(values) > 1) <= token < len(values)
        sampler.accept(token)
