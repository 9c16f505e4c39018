"""Chooses the next token from a model's logits: a chain of small steps, then one random number."""

import os
from dataclasses import fields
from functools import cached_property
from operator import index

import numpy as np

from ikpy_llm.arguments import refuse
from ikpy_llm.errors import IkpyError, shown
from ikpy_llm.sampling.choice import AdaptiveP, choice_of
from ikpy_llm.sampling.history import HISTORY, History, breakers_of
from ikpy_llm.sampling.options import SamplerOptions
from ikpy_llm.sampling.steps import STEPS, USED, Candidates

__all__ = ["Sampler", "SamplerOptions", "uniform"]


def uniform(seed: int, counter: int) -> float:
    """Random number `counter` of the sequence `seed`, in [0, 1): SplitMix64. (Importing numpy.random costs 20 ms.)"""
    x = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFF_FFFF_FFFF_FFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFF_FFFF_FFFF_FFFF
    return ((x ^ x >> 31) >> 11) * 2.0**-53


class Sampler:
    """The sampler of one request: `sample(logits)` chooses, `accept(token)` tells it what the text contains.

    `vocab` gives line ends and the sequence breakers of DRY; `banned`: ids that are never chosen; `grammar`: an object
    with `mask()` -> bool (n_vocab,) of what may come now and `accept(token)`. `seed` is the seed in use. The sequence
    depends on it and on what was sampled, on nothing else.
    """

    def __init__(self, options: SamplerOptions, n_vocab: int, vocab=None, *, banned=(), grammar=None):
        self.options, self.n_vocab, self.vocab, self.grammar = options, n_vocab, vocab, grammar
        # a seed names the same sequence whether it is written signed or unsigned
        self.seed = int.from_bytes(os.urandom(4)) if options.seed == -1 else options.seed & 0xFFFF_FFFF_FFFF_FFFF
        self._stream = int(uniform(self.seed, 0) * 2.0**53)  # neighbouring seeds must not give shifted sequences
        self._drawn = 0
        self.history, self.mu, self.adaptive = History(), 2 * options.mirostat_ent, AdaptiveP(options)
        for token in options.logit_bias:
            if token >= n_vocab:
                raise IkpyError(f"logit_bias: token {token} does not exist; the vocabulary has {n_vocab}")
        bias = dict(options.logit_bias) | {token: -np.inf for token in banned if token < n_vocab}
        self._bias = np.array(sorted(bias), np.int64), np.array([bias[t] for t in sorted(bias)], np.float32)
        chain = options.chain()
        if "penalties" not in chain:  # ik_llama.cpp has them before every chain
            chain = ("penalties", *chain)
        self._always = tuple(STEPS[name] for name in chain if name in HISTORY and USED[name](options))
        names = [name for name in chain if USED[name](options)]
        if options.mirostat:
            names = [name for name in names if name in (*HISTORY, "temperature")]
        self._steps, self._choose = tuple(STEPS[name] for name in names), choice_of(options, chain)

    def __repr__(self) -> str:
        ours = ((f.name, getattr(self.options, f.name), f.default) for f in fields(self.options) if f.name != "seed")
        changed = "".join(f"{name}={shown(value)}, " for name, value, default in ours if value not in (default, {}))
        return f"Sampler({changed}seed={self.seed})"

    @cached_property
    def newline(self) -> int | None:
        """The token of a line end."""
        ids = self.vocab.encode("\n", add_special=False) if self.vocab else []
        return ids[-1] if ids else None

    @cached_property
    def breakers(self) -> dict[int, list[tuple]]:
        """DRY's sequence breakers as tokens."""
        return breakers_of(self.options.dry_sequence_breakers, self.vocab) if self.vocab else {}

    def draw(self) -> float:
        """The next random number in [0, 1)."""
        value = uniform(self._stream, self._drawn)
        self._drawn += 1
        return value

    def accept(self, token: int) -> None:
        """`token`, of the prompt or sampled, is now part of the text."""
        try:
            self.history.append(index(token))
        except (TypeError, OverflowError):
            refuse("token", token, "a token id")

    def sample(self, logits: np.ndarray) -> int:
        """The next token; the grammar moves on by it. `logits`: float32 (n_vocab,), not changed.

        IkpyError if they are not numbers or nothing is allowed.
        """
        if getattr(logits, "shape", None) != (self.n_vocab,) or logits.dtype.kind != "f":
            what = f"of shape {logits.shape}" if hasattr(logits, "shape") else f"as {type(logits).__name__}"
            raise IkpyError(f"the model gave logits {what} for {self.n_vocab} tokens; a row of floats is accepted")
        best = logits[logits.argmax()]  # a NaN, if there is one
        if not np.isfinite(best):
            raise IkpyError(f"the model gave non-finite logits (largest: {best}); the file may be damaged")
        token = self._choice(self._allowed(logits))
        if self.grammar is not None:
            self.grammar.accept(token)
        return token

    def _allowed(self, logits: np.ndarray) -> np.ndarray:
        """With logit bias; -inf for what the grammar forbids."""
        tokens, amounts = self._bias
        if len(tokens):
            logits = logits.copy()
            logits[tokens] += amounts
        if self.grammar is not None:
            logits = np.where(self.grammar.mask(), logits, np.float32(-np.inf))
        if not logits.max() > -np.inf:
            raise IkpyError("no token may follow: grammar and logit bias (or --ignore-eos) forbid every one")
        return logits

    def _choice(self, logits: np.ndarray) -> int:
        options = self.options
        c = Candidates(None, logits)
        if options.temp <= 0:
            for step in self._always:
                c = step(c, options, self)
            return int(c.logits.argmax())
        if options.adaptive_target >= 0:
            self.adaptive.before(logits)
        for step in self._steps:
            c = step(c, options, self)
        c = c.order()
        return int(c.ids[self._choose(c, options, self)])
