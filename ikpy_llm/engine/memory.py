"""Working memory: anonymous, zero until written, aligned for vectors and huge pages, given back when dropped."""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np

HUGE = 2 << 20  # bytes of a huge page on x86-64 and (4 KiB base pages) arm64
PAGE = mmap.PAGESIZE
# Python maps shared memory unless told otherwise: a forked child would write into it, and it gets no huge pages.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Memory:
    """`n_bytes` at `address`, aligned to a page, or to a huge page where `huge` and at least one long.

    Pages come into being when touched; huge ones cost fewer TLB misses, but 2 MiB are cleared at the first touch.
    """

    def __init__(self, n_bytes: int, fill: bool = False, huge: bool = True):
        self.n_bytes = n_bytes
        align = HUGE if huge and n_bytes >= HUGE else PAGE
        self._map = mmap.mmap(-1, max(n_bytes, 1) + align - PAGE, **_PRIVATE)
        start = np.frombuffer(self._map, np.uint8)
        offset = -start.ctypes.data % align
        self.bytes = start[offset : offset + n_bytes]
        self.address = self.bytes.ctypes.data
        if align == HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        if fill:  # NaN as float32 and float16: reading what nobody wrote shows
            self.bytes[:] = 0xFF


def available(root: Path = Path("/")) -> int | None:
    """Bytes this process may still use: the system's, within the control groups' limits; None if unknown."""
    found = []
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            found.append(int(value.split()[0]) << 10)
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        limit, used = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        folder = base / path.lstrip("/")
        for f in (folder, *folder.parents):
            if f == base or base in f.parents:
                found.append(_limit(f / limit) - max(0, _number(f / used) - _file_pages(f)))
    if not found:
        try:
            import psutil

            return psutil.virtual_memory().available
        except ImportError:
            return None
    return max(0, min(found))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else 0


def _file_pages(folder: Path) -> int:
    """Bytes counted as used that are pages of files the system can drop, such as the model's."""
    pairs = (line.split() for line in _lines(folder / "memory.stat"))
    return next((int(n) for name, n in pairs if name in ("inactive_file", "total_inactive_file")), 0)


def _limit(path: Path) -> int:
    return _number(path) or 1 << 62  # "max", or no such limit
