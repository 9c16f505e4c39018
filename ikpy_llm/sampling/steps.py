"""Steps of a sampler that cut the candidates or bend their logits; each is one function, registered by its name."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ikpy_llm.sampling.options import SamplerOptions

GROUP = 64  # logits of which the largest is taken before looking for the top k


@dataclass
class Candidates:
    """Tokens still in the race. ids: int64 (n,); logits: float (n,), finite; `ordered`: from high to low, ties by id.

    None for `ids` stands for all tokens of the vocabulary; what a mask forbids has the logit -inf until ordered.
    """

    ids: np.ndarray | None
    logits: np.ndarray
    ordered: bool = False

    def order(self, k: int = 0) -> "Candidates":
        """Sort from high to low; with k > 0 only the k first are needed (there may be more)."""
        if self.ordered:
            return self
        ids, logits = self.ids, self.logits
        if ids is None:
            ids = most_likely(logits, k) if k else np.flatnonzero(logits > -np.inf)
            logits = logits[ids]
        ids_or_logits = np.argsort(-logits, kind="stable")
        ids, logits = ids[ids_or_logits], logits[ids_or_logits]
        n = int(np.count_nonzero(logits > -np.inf))
        return Candidates(ids[:n], logits[:n], True)

    def first(self, n: int) -> "Candidates":
        """The n first."""
        return Candidates(self.ids[:n], self.logits[:n], self.ordered)

    def changed(self, tokens: np.ndarray, change) -> "Candidates":
        """With the logits of `tokens` (distinct ids) replaced by change(logits, which of the tokens)."""
        if self.ids is None:
            at, which = tokens, np.arange(len(tokens))
        else:
            _, at, which = np.intersect1d(self.ids, tokens, assume_unique=True, return_indices=True)
        if not len(at):
            return self
        logits = self.logits.copy()
        old, limit = logits[at], np.finfo(logits.dtype).max
        # no penalty makes a token impossible, and none makes a forbidden one possible
        logits[at] = np.where(old > -np.inf, np.clip(change(old.astype(np.float64), which), -limit, limit), old)
        return Candidates(self.ids, logits)


def most_likely(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of at least the k largest logits, ascending."""
    columns = len(logits) // GROUP
    if k > columns:
        return np.arange(len(logits))
    # Of `columns` disjoint groups, k have their largest at or above the k-th largest of these: so k logits are.
    largest = logits[: columns * GROUP].reshape(GROUP, columns).max(0)
    return np.flatnonzero(logits >= np.partition(largest, columns - k)[columns - k])


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64 of finite logits."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


Step = Callable[[Candidates, SamplerOptions, object], Candidates]
STEPS: dict[str, Step] = {}  # (candidates, options, state of the sampler) -> candidates, never none
USED: dict[str, Callable[[SamplerOptions], bool]] = {}  # does the step change anything with these options?


def step(name: str, used: Callable[[SamplerOptions], bool]):
    """Registers a step; the chain leaves it out where `used` says that the options switch it off."""

    def register(function: Step) -> Step:
        STEPS[name], USED[name] = function, used
        return function

    return register


def _keep(o: SamplerOptions) -> int:
    return max(1, o.min_keep)


@step("top_k", lambda o: o.top_k > 0)
def top_k(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """The k most likely."""
    k = max(o.top_k, _keep(o))
    return c.order(k).first(k)


@step("top_p", lambda o: o.top_p < 1)
def top_p(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """The shortest run of the most likely with a sum of at least p."""
    c = c.order()
    n = int(np.searchsorted(np.cumsum(probabilities(c.logits)), o.top_p)) + 1
    return c.first(max(n, _keep(o)))


@step("min_p", lambda o: o.min_p > 0)
def min_p(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """Those with p_i >= min_p * p_max."""
    c = c.order()
    n = int(np.count_nonzero(c.logits >= c.logits[0] + np.log(o.min_p)))
    return c.first(max(n, _keep(o)))


@step("tfs_z", lambda o: o.tfs_z < 1)
def tfs_z(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """Tail free: those before the sum of |second differences of p|, normalized, exceeds z."""
    c = c.order()
    if len(c.logits) <= 2:
        return c
    bends = np.abs(np.diff(probabilities(c.logits), 2))
    total = bends.sum()
    bends = bends / total if total > 1e-6 else np.full(len(bends), 1 / len(bends))
    past = np.flatnonzero(np.cumsum(bends) > o.tfs_z)
    past = past[past >= _keep(o)]
    return c.first(int(past[0])) if len(past) else c


@step("typical_p", lambda o: o.typical_p < 1)
def typical_p(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """Those whose surprise -log p is nearest to the entropy, until their sum exceeds p."""
    c = c.order()
    p = probabilities(c.logits)
    surprise = -np.log(np.maximum(p, 1e-300))
    nearest = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
    n = int(np.searchsorted(np.cumsum(p[nearest]), o.typical_p, side="right")) + 1
    kept = np.sort(nearest[: max(n, _keep(o))])  # positions ascend: still from high to low
    return Candidates(c.ids[kept], c.logits[kept], True)


@step("top_n_sigma", lambda o: o.top_n_sigma > 0)
def top_n_sigma(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """Logits >= max - n * (their standard deviation)."""
    allowed = c.logits > -np.inf
    logits = c.logits[allowed].astype(np.float64)
    if len(logits) < 4:  # as in ik_llama.cpp: no deviation of so few
        return c
    kept = np.flatnonzero(allowed & (c.logits >= logits.max() - o.top_n_sigma * logits.std()))
    if len(kept) < o.min_keep:
        c = c.order(o.min_keep)
        return c.first(o.min_keep)
    return Candidates(kept if c.ids is None else c.ids[kept], c.logits[kept], c.ordered)


@step("xtc", lambda o: o.xtc_probability > 0 and o.xtc_threshold <= 0.5)
def xtc(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """With a chance: drop every token of at least the threshold except the least likely of them."""
    if o.xtc_probability < 1 and state.draw() > o.xtc_probability:
        return c
    c = c.order()
    drop = int(np.count_nonzero(probabilities(c.logits) >= o.xtc_threshold)) - 1
    if drop <= 0 or len(c.logits) - drop < _keep(o):
        return c
    return Candidates(c.ids[drop:], c.logits[drop:], True)


@step("temperature", lambda o: True)
def temperature(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """logits / temp; with a range R: temp-R + 2R * (entropy / its maximum)^exponent instead of temp."""
    temp = o.temp
    if o.dynatemp_range > 0 and not o.mirostat:
        c = c.order()
        if len(c.logits) < 2:
            return c
        p = probabilities(c.logits)
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(len(p))
        low, high = max(0.0, o.temp - o.dynatemp_range), o.temp + o.dynatemp_range
        temp = low + (high - low) * min(1.0, entropy) ** o.dynatemp_exponent
    temp = max(temp, 1e-30)  # of an entropy of 0; float64 below keeps the quotients finite
    top = c.logits.max()  # relative to the best, so that nothing overflows
    return Candidates(c.ids, (c.logits.astype(np.float64) - top) / temp, c.ordered)
