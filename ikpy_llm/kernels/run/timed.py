"""A kernel around a kernel: notes when each thread starts and ends it, for engine/measure/trace.py."""

from __future__ import annotations

from .. import simd

SLOT = 8  # int64 words per thread and record, a cache line: start s, start ns, end s, end ns


def timed():
    """words: kernel address, its arguments, times int64[nth][SLOT]."""
    clock, call_kernel = simd.clock, simd.call_kernel

    def timed(kernel, args, times, ith, nth):
        slot = times + 8 * SLOT * ith
        clock(slot)
        call_kernel(kernel, args, ith, nth)
        clock(slot + 16)

    return timed
