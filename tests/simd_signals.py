"""Cases of simd_cases.py: what a handler of a signal is made of (Linux)."""

import mmap
import sys

import numpy as np
from simd_harness import SLOT, case

from ikpy_llm.kernels import simd

PAGES = mmap.mmap(-1, 2 * mmap.PAGESIZE)
SIGUSR1 = 10

if sys.platform == "linux":

    @case
    def signals():
        """A word of its own; zeros in the place of pages; the action of a signal, and of one that does not exist."""
        size = mmap.PAGESIZE

        def kernel(pages, action, out, ith, nth):
            word = simd.own_word()
            simd.store_i64(out, simd.load_i64(word))
            simd.store_i64(word, 5)
            simd.store_i64(out + SLOT, simd.load_i64(simd.own_word()))
            simd.store_i64(out + 2 * SLOT, simd.map_zeros(pages, size) - pages)
            simd.store_i64(out + 3 * SLOT, simd.load_i64(pages + size - 8))
            simd.store_i64(out + 4 * SLOT, simd.load_i64(pages + size))
            simd.store_i64(out + 5 * SLOT, simd.map_zeros(pages + 8, size))
            simd.store_i64(out + 6 * SLOT, simd.set_action(SIGUSR1, action))
            simd.store_i64(out + 7 * SLOT, simd.set_action(1000, action))

        PAGES[:] = b"\7" * len(PAGES)
        page = np.frombuffer(PAGES, np.uint8).ctypes.data
        sevens = int.from_bytes(b"\7" * 8, "little")
        return kernel, (page, np.zeros(152, np.uint8)), tuple(np.int64(v) for v in (0, 5, 0, 0, sevens, -1, 0, -1))
