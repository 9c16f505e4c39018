"""Sampler steps that look at the text so far: penalties for recent tokens, and DRY against repeated sequences."""

import math

import numpy as np

from ikpy_llm.sampling.options import SamplerOptions
from ikpy_llm.sampling.steps import Candidates, step

HISTORY = ("penalties", "dry")  # these steps apply whatever chooses the token, also with temperature 0
MAX_CHARS, MAX_TAIL = 40, 20  # of a sequence breaker: characters, and tokens after its first
FLOAT_MAX_LOG = 88.7228391  # log of the largest float32: penalties stay finite


class History:
    """The tokens of a text, growing at its end."""

    def __init__(self):
        self._tokens, self.n = np.empty(256, np.int64), 0

    def append(self, token: int) -> None:
        if self.n == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self._tokens[self.n] = token
        self.n += 1

    def last(self, n: int) -> np.ndarray:
        """The last n tokens in the order of the text; all for n < 0."""
        return self._tokens[0 if n < 0 else max(0, self.n - n) : self.n]


def _penalizes(o: SamplerOptions) -> bool:
    changes = o.repeat_penalty != 1 or o.presence_penalty != 0 or o.frequency_penalty != 0
    return changes and o.repeat_last_n != 0


@step("penalties", _penalizes)
def penalties(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """Of a token with n > 0 recent ones: logit / repeat (* where negative) - n * frequency - presence."""
    recent = state.history.last(o.repeat_last_n)
    tokens, times = np.unique(recent[(recent >= 0) & (recent < state.n_vocab)], return_counts=True)
    if not o.penalize_nl and state.newline is not None:
        keep = tokens != state.newline
        tokens, times = tokens[keep], times[keep]

    def change(logits, which):
        scaled = np.where(logits <= 0, logits * o.repeat_penalty, logits / o.repeat_penalty)
        return scaled - times[which] * o.frequency_penalty - o.presence_penalty

    return c.changed(tokens, change)


@step("dry", lambda o: o.dry_multiplier > 0 and o.dry_base >= 1 and o.dry_penalty_last_n != 0)
def dry(c: Candidates, o: SamplerOptions, state) -> Candidates:
    """A token that would continue a repeated sequence of n tokens: logit - multiplier * base^(n - allowed)."""
    repeated = dry_repeats(state.history.last(o.dry_penalty_last_n), o, state.breakers)
    tokens = np.array(sorted(t for t in repeated if 0 <= t < state.n_vocab), np.int64)
    longest = np.array([repeated[t] for t in tokens], np.float64)
    amounts = o.dry_multiplier * o.dry_base ** np.minimum(longest - o.dry_allowed_length, _most(o))
    return c.changed(tokens, lambda logits, which: logits - amounts[which])


def _most(o: SamplerOptions) -> int:
    """The largest exponent of the base; longer repetitions are punished no more."""
    return int(FLOAT_MAX_LOG / math.log(o.dry_base)) if o.dry_base > 1.000001 else 0


def dry_repeats(text: np.ndarray, o: SamplerOptions, breakers: dict[int, list[tuple]]) -> dict[int, int]:
    """Token -> tokens of the longest earlier sequence that ends like the text and was followed by this token.

    Sequences do not reach across a breaker (`breakers`: first token -> the tokens after it), and shorter ones than
    allowed are left out.
    """
    n = len(text)
    limit = min(reach(text, breakers), o.dry_allowed_length + _most(o))
    if n <= o.dry_allowed_length or limit < o.dry_allowed_length:
        return {}
    # `ends`: positions behind an earlier copy of the last `length` tokens; one more token is compared every round.
    ends, found = np.arange(1, n), {}
    for length in range(limit + 1):
        if length >= o.dry_allowed_length:
            for token in set(text[ends].tolist()):
                found[token] = length
        ends = ends[ends > length]
        ends = ends[text[ends - length - 1] == text[n - length - 1]]
        if not len(ends):
            break
    single = {token for token, tails in breakers.items() if () in tails}
    return {token: length for token, length in found.items() if token not in single}


def reach(text: np.ndarray, breakers: dict[int, list[tuple]]) -> int:
    """How many tokens at the end of the text have no breaker among them."""
    n = len(text)
    heads = np.flatnonzero(np.isin(text, list(breakers))) if breakers else ()
    for at in reversed(heads):
        lengths = [len(tail) for tail in breakers[int(text[at])] if tuple(text[at + 1 : at + 1 + len(tail)]) == tail]
        if lengths:
            return n - 1 - int(at) - max(lengths)
    return n


def breakers_of(texts, vocab) -> dict[int, list[tuple]]:
    """For every token that can begin one of the texts: what has to follow; () for tokens that contain one."""
    found: dict[int, list[tuple]] = {}
    pieces = [vocab.token_bytes(token, False) for token in range(vocab.n_tokens)]
    for text in texts:
        text = text[:MAX_CHARS]
        wanted = text.encode()
        for token, piece in enumerate(pieces):
            if wanted in piece:
                tails = {()}
            else:  # the piece may end with the first bytes of the text
                cuts = [n for n in range(1, min(len(piece), len(wanted) - 1) + 1) if piece.endswith(wanted[:n])]
                rests = [wanted[n:].decode("utf-8", "ignore") for n in cuts]
                tails = {tuple(vocab.encode(rest, add_special=False)[:MAX_TAIL]) for rest in rests if rest}
            for tail in sorted(tails - set(found.get(token, ()))):
                found.setdefault(token, []).append(tail)
    return found
