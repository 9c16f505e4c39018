"""Cases of simd_cases.py: what threads meet with."""

import os

import numpy as np
from simd_harness import SLOT, case

from ikpy_llm.kernels import simd


@case
def atomics():
    buffer = simd.stack(256)

    def kernel(out, ith, nth):
        cell = buffer()
        simd.atomic_store(cell, 40)
        simd.store_i64(out, simd.atomic_add(cell, 2))
        simd.store_i64(out + SLOT, simd.atomic_swap_if(cell, 41, 7))
        simd.store_i64(out + 2 * SLOT, simd.atomic_swap_if(cell, 42, 9))
        simd.store_i64(out + 3 * SLOT, simd.atomic_load(cell))
        simd.store_i64(out + 4 * SLOT, cell % 64)
        simd.pause()
        simd.sched_yield()
        simd.clock(cell)
        simd.clock(cell + 16)
        passed = (simd.load_i64(cell + 16) - simd.load_i64(cell)) * 10**9 + simd.load_i64(cell + 24)
        simd.store_i64(out + 5 * SLOT, 1 if passed >= simd.load_i64(cell + 8) else 0)

    return kernel, (), tuple(np.int64(v) for v in (40, 42, 42, 9, 0, 1))


@case
def waiting():
    """A wait for what is not so any more returns at once, one that nobody ends after its time."""
    buffer = simd.stack(256)

    def kernel(out, ith, nth):
        cell = buffer()
        simd.atomic_store(cell, (5 << 32) + 7)
        simd.wait_on(cell, 6, 0)
        simd.clock(cell + 16)
        simd.wait_on(cell, (5 << 32) + 7, 2_000_000)
        simd.clock(cell + 32)
        passed = (simd.load_i64(cell + 32) - simd.load_i64(cell + 16)) * 10**9
        passed += simd.load_i64(cell + 40) - simd.load_i64(cell + 24)
        simd.wake_all(cell)
        simd.store_i64(out, 1 if passed < 10**10 else 0)
        simd.store_i64(out + SLOT, simd.atomic_load(cell) >> 32)

    return kernel, (), (np.int64(1), np.int64(5))


if hasattr(os, "sched_setaffinity"):

    @case
    def affinity():
        """What a thread is bound to is what it was bound to; an empty set is refused."""
        buffer, size = simd.stack(1024), 1024

        def kernel(out, ith, nth):
            cpus = buffer()
            simd.store_i64(out, simd.get_affinity(cpus, size))
            simd.store_i64(out + SLOT, simd.set_affinity(cpus, size))
            for i in range(0, size, 8):
                simd.store_i64(cpus + i, 0)
            simd.store_i64(out + 2 * SLOT, simd.set_affinity(cpus, size))
            simd.store_i64(out + 3 * SLOT, 1 if 0 <= simd.this_cpu() < 8 * size else 0)

        return kernel, (), tuple(np.int64(v) for v in (0, 0, -1, 1))
