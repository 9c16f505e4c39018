"""How threads share the parts of a matrix: contiguous runs of three quarters, and of the rest whoever comes first.

Cores differ, in kind or in what others do on them, and all threads wait for the slowest. Zen 4 with uneven neighbours,
generation with a model of 0.4 B, against equal runs: Q4_0 and Q8_0 1.08, IQ2_XXS 1.12 times as fast.
"""

from __future__ import annotations

from .simd import inline

# of a run at least: each begins with a wait for memory, and what was asked for past its end is lost
RUN_BYTES = 64 << 10


@inline
def shares(n, n_bytes, nth):
    """Parts of each thread's own run, of n of n_bytes; those that are left are dealt."""
    return n * 3 // (4 * nth) if nth > 1 and n * n_bytes >= 4 * (nth + 2) * RUN_BYTES else n // nth


@inline
def runs(n, own, nth):
    """Parts that a thread takes at a time of those that are nobody's own: few runs, as the counter is shared."""
    return (n - own * nth) // (nth + 2) + 1
