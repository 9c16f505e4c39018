"""How much memory this process may use."""

from __future__ import annotations

import logging
from pathlib import Path

from ikpy_llm import system
from ikpy_llm.errors import IkpyError

log = logging.getLogger("ikpy.session")


def check(path, packed: bool, n_step: int, weights: int, file: int, buffers: int, context: int) -> None:
    """Say what a session is about to take besides its KV cache; IkpyError where it cannot be, before any of it is.

    All in bytes. packed: weights are woven; n_step: tokens of a step; context: the KV cache and its tables. What is
    read from the file can be dropped again and is no need.
    """
    free, what = available(), "woven" if packed else "made of the file's"
    parts = [f"weights {weights / 1e6:.1f} MB {what}"] * (weights > 0)
    parts += [f"weights {file / 1e6:.1f} MB read from the file"] * (not packed)
    parts.append(f"buffers {buffers / 1e6:.1f} MB for {n_step} tokens")
    there = "" if free is None else f"; {free / 1e6:.0f} MB are free"
    log.info("memory besides: %s%s", ", ".join(parts), there)
    if free is None:
        return
    if weights + buffers + context > free:
        ways = "-no-rtr reads weights from the file; " * packed + "a smaller context (-c) or step (-ub) helps"
        raise IkpyError(
            f"{path}: {(weights + buffers + context) / 1e6:.0f} MB of memory are needed ({', '.join(parts)}, "
            f"{context / 1e6:.0f} MB for the context), {free / 1e6:.0f} MB are free; {ways}"
        )
    if not packed and file + buffers + context > free:
        log.warning("the model is larger than the free memory: parts of it are read from the disk again and again")


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
        except (ImportError, OSError):  # no such library, no /proc
            system.lacks("way to ask how much memory is free", "weights are woven as if it were enough")
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
    """Bytes counted as used that are pages of files, such as the model's: the system drops them where it needs memory,
    also those used lately (active). Pages of a tmpfs are not among them."""
    stat = dict(line.split()[:2] for line in _lines(folder / "memory.stat"))
    # total_ (v1 only): with the groups below this one, as the bytes in use are.
    return sum(int(stat.get(f"total_{kind}", stat.get(kind, 0))) for kind in ("active_file", "inactive_file"))


def _limit(path: Path) -> int:
    return _number(path) or 1 << 62  # "max", or no such limit
