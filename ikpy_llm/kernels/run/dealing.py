"""How threads share the parts of a matrix: contiguous runs of three quarters, and of the rest whoever comes first.

Cores differ, in kind or in what others do on them, and all threads wait for the slowest. Zen 4 with uneven neighbours,
generation with a model of 0.4 B, against equal runs: Q4_0 and Q8_0 1.08, IQ2_XXS 1.12 times as fast.
"""

from __future__ import annotations

from ..simd import inline
from ..simd.threads import atomic_add

# of a run at least: each begins with a wait for memory, and what was asked for past its end is lost
RUN_BYTES = 64 << 10


@inline
def own_run(n, n_bytes, claim, ith, nth):
    """(first, end, dealt): this thread's own parts, of n of n_bytes, and the first that is nobody's own. That is n, and
    all runs are equal, without a counter (claim 0) and where runs would be short."""
    if claim == 0 or nth == 1 or n * n_bytes < 4 * (nth + 2) * RUN_BYTES:
        return n * ith // nth, n * (ith + 1) // nth, n
    own = n * 3 // (4 * nth)
    return own * ith, own * ith + own, own * nth


@inline
def next_run(n, dealt, claim, nth):
    """(first, end) of the parts that the caller takes next of those from `dealt` on; n where none are left. Few runs,
    as the counter is shared."""
    if dealt == n:
        return n, n
    run = (n - dealt) // (nth + 2) + 1
    first = dealt + atomic_add(claim, 1) * run
    return first, min(first + run, n)
