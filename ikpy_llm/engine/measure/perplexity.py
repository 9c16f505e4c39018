"""Perplexity of a text, by llama.cpp's protocol: chunks of the context, their second half scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ikpy_llm.errors import IkpyError

ROWS = 64  # positions whose logits are in memory at once


@dataclass
class Perplexity:
    """`value` and its standard error; `running[i]`: the value after i + 1 chunks of `n_ctx` tokens."""

    value: float
    error: float
    n_ctx: int
    n_scored: int
    running: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"Perplexity(value={self.value:.4f}, error={self.error:.4f}, n_ctx={self.n_ctx}, n_scored={self.n_scored}, "
            f"running=[{len(self.running)} chunks])"
        )


def perplexity(
    session,
    tokens: list[int],
    *,
    bos: int | None,
    n_ctx: int = 512,
    n_chunks: int = -1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Perplexity:
    """exp(mean of -log p(token n_ctx/2 + 1 ... n_ctx - 1 | those before it)) over all chunks of n_ctx tokens.

    bos: replaces the first token of every chunk, None: the model has none. n_chunks: at most so many, -1: all.
    progress(done, total, name) is called after every chunk.
    """
    if not 4 <= n_ctx <= session.n_ctx:
        raise IkpyError(f"n_ctx of perplexity is {n_ctx}; 4 to {session.n_ctx} (the model's context) is accepted")
    if len(tokens) < 2 * n_ctx:
        raise IkpyError(f"the text has {len(tokens)} tokens; perplexity with n_ctx {n_ctx} needs {2 * n_ctx} or more")
    total = len(tokens) // n_ctx if n_chunks < 0 else min(n_chunks, len(tokens) // n_ctx)
    sums, squares, n, running = 0.0, 0.0, 0, []
    for i in range(total):
        chunk = list(tokens[i * n_ctx : (i + 1) * n_ctx])
        if bos is not None:
            chunk[0] = bos
        losses = chunk_losses(session, chunk)
        sums, squares, n = sums + losses.sum(), squares + (losses**2).sum(), n + len(losses)
        running.append(math.exp(sums / n))
        if progress:
            progress(i + 1, total, "perplexity")
    if not n:
        raise IkpyError(f"n_chunks is {n_chunks}; 1 or more (or -1) is accepted")
    variance = max(squares / n - (sums / n) ** 2, 0.0)
    error = math.sqrt(variance / (n - 1)) * running[-1] if n > 1 else 0.0
    return Perplexity(running[-1], error, n_ctx, n, running)


def chunk_losses(session, chunk: list[int]) -> np.ndarray:
    """float64: -log p of the tokens n/2 + 1 ... n - 1 of a chunk, which starts a new sequence."""
    first, out = len(chunk) // 2, []
    session.rewind(0)
    session.eval(chunk[:first])
    for start in range(first, len(chunk) - 1, ROWS):
        given = chunk[start : min(start + ROWS, len(chunk) - 1)]
        logits = session.eval(given, all_logits=True)
        out.append(losses(logits, chunk[start + 1 : start + 1 + len(given)]))
    return np.concatenate(out)


def losses(logits: np.ndarray, tokens) -> np.ndarray:
    """float64 (n,): -log softmax(logits[i])[tokens[i]]."""
    rows = logits.astype(np.float64)
    top = rows.max(1)
    return np.log(np.exp(rows - top[:, None]).sum(1)) + top - rows[np.arange(len(rows)), np.asarray(tokens)]
