"""How a sampler takes one of the candidates that its steps left: at random, by mirostat, or by adaptive-p."""

import math
from collections.abc import Callable

import numpy as np

from ikpy_llm.sampling.options import SamplerOptions
from ikpy_llm.sampling.steps import Candidates, probabilities, step

MIROSTAT_M = 100  # tokens from which mirostat 1 estimates the slope of Zipf's law
MAX_DECAY = 0.99

Choice = Callable[[Candidates, SamplerOptions, object], int]  # -> position in the candidates


def choice_of(o: SamplerOptions, chain) -> Choice:
    """What chooses with these options and steps."""
    if o.mirostat:
        return {1: mirostat_1, 2: mirostat_2}[o.mirostat]
    return adaptive_p_choice if o.adaptive_target >= 0 and "adaptive_p" in chain else at_random


def at_random(c: Candidates, o: SamplerOptions, state) -> int:
    """Position i with probability softmax(logits)[i]."""
    sums = np.cumsum(probabilities(c.logits))
    return min(int(np.searchsorted(sums, state.draw() * sums[-1], side="right")), len(c.ids) - 1)


@step("dist", lambda o: False)
def dist(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """The draw at the end of every chain; a name in --sampling-seq without effect of its own."""
    return c


# --- mirostat (arXiv 2007.14966): state.mu, in bits, starts at 2 * target and follows the surprise of choices ------


def mirostat_1(c: Candidates, o: SamplerOptions, state) -> int:
    """From the k most likely, k such that their expected surprise is mu under Zipf's law with the slope seen."""
    c = c.order()
    p = probabilities(c.logits)
    m = min(MIROSTAT_M, len(p)) - 1
    ranks = np.log(np.arange(2, m + 2) / np.arange(1, m + 1))
    falls = -np.diff(c.logits[: m + 1].astype(np.float64))
    slope = float((ranks * falls).sum() / (ranks**2).sum()) if m else 0.0
    k = len(p)
    if slope > 0 and abs(slope - 1) > 1e-9:
        excess = slope - 1
        # k = (excess * 2^mu / (1 - n_vocab^-excess))^(1 / slope), in logs: it may be larger than any float
        log_k = math.log(excess / -math.expm1(-excess * math.log(state.n_vocab))) + state.mu * math.log(2)
        log_k /= slope
        k = int(math.exp(min(max(log_k, 0.0), math.log(k))) + 1e-9)
    at = at_random(c.first(max(k, 1)), o, state)
    return _learn(at, p[at], o, state)


def mirostat_2(c: Candidates, o: SamplerOptions, state) -> int:
    """From those of a surprise -log2 p up to mu."""
    c = c.order()
    n = int(np.count_nonzero(-np.log2(np.maximum(probabilities(c.logits), 1e-300)) <= state.mu))
    c = c.first(max(n, 1))
    at = at_random(c, o, state)
    return _learn(at, probabilities(c.logits)[at], o, state)


def _learn(at: int, p: float, o: SamplerOptions, state) -> int:
    state.mu -= o.mirostat_lr * (-math.log2(max(p, 1e-300)) - o.mirostat_ent)
    return at


# --- adaptive-p: prefers tokens of a probability that keeps the average of those chosen at the target ---


class AdaptiveP:
    """The weighted sum of probabilities chosen so far, as if the target had always been met before."""

    def __init__(self, o: SamplerOptions):
        self.decay = min(o.adaptive_decay, MAX_DECAY)
        self.total = 1 / (1 - self.decay)
        self.weighted = max(o.adaptive_target, 0.0) * self.total
        self.original = None  # (logits before the chain, their maximum, sum of exp(logit - maximum))

    def target(self, o: SamplerOptions) -> float:
        """The probability to prefer now: as far on the other side of the target as the average is on this one."""
        return min(max(2 * o.adaptive_target - self.weighted / self.total, 0.0), 1.0)

    def before(self, logits: np.ndarray) -> None:
        """Called with all logits before the chain."""
        top = float(logits.max())
        self.original = logits, top, float(np.exp(logits.astype(np.float64) - top).sum())

    def update(self, p: float) -> None:
        if p > 0:
            self.weighted = self.decay * self.weighted + p
            self.total = self.decay * self.total + 1


@step("adaptive_p", lambda o: False)
def adaptive_p(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """Logits 5 - 10 d^2 / (1 + d) with d = |p - target| / 0.3; always last, so the choice below applies it."""
    d = np.abs(probabilities(c.logits) - state.adaptive.target(o)) / 0.3
    return Candidates(c.ids, 5 - 10 * d * d / (1 + d))


def adaptive_p_choice(c: Candidates, o: SamplerOptions, state) -> int:
    """Draw after adaptive_p and remember the probability of what was drawn."""
    at = at_random(adaptive_p(c, o, state), o, state)
    if o.adaptive_updt_w_cur:
        p = float(probabilities(c.logits)[at])
    else:
        logits, top, total = state.adaptive.original
        p = math.exp(float(logits[c.ids[at]]) - top) / total
    state.adaptive.update(p)
    return at
