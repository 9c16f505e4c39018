"""Working memory: anonymous, zero until written, aligned for vectors and huge pages; given back when dropped."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from ikpy_llm import system
from ikpy_llm.errors import IkpyError

HUGE = 2 << 20  # bytes of a huge page on x86-64 and (4 KiB base pages) arm64
PAGE, LINE = mmap.PAGESIZE, 64
# Python maps shared memory unless told otherwise: a forked child would write into it, and it gets no huge pages.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def copied(data: np.ndarray) -> np.ndarray:
    """Bytes in memory of our own, from a cache line on."""
    memory = np.empty(len(data) + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    memory[start : start + len(data)] = data
    return memory[start : start + len(data)]


class Memory:
    """`n_bytes` at `address`, aligned to a page, or to a huge page where `huge` and at least one long.

    Pages come into being when touched; huge ones cost fewer TLB misses, but 2 MiB are cleared at the first touch.
    """

    def __init__(self, n_bytes: int, fill: bool = False, huge: bool = True):
        self.n_bytes = n_bytes
        align = HUGE if huge and n_bytes >= HUGE else PAGE
        try:
            self._map = mmap.mmap(-1, max(n_bytes, 1) + align - PAGE, **_PRIVATE)
        except (OSError, OverflowError) as error:  # a limit of this process (ulimit -v), or of the machine
            why = getattr(error, "strerror", None) or error
            raise IkpyError(f"{n_bytes / 1e6:.1f} MB of memory are not to be had: {why}") from None
        start = np.frombuffer(self._map, np.uint8)
        offset = -start.ctypes.data % align
        self.bytes = start[offset : offset + n_bytes]
        self.address = self.bytes.ctypes.data
        if align == HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        elif align == HUGE:
            system.lacks("huge pages that a program can ask for", "weights lie in small ones")
        if fill:  # NaN as float32 and float16: reading what nobody wrote shows
            self.bytes[:] = 0xFF
