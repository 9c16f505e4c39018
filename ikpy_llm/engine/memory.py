"""How much memory this process may use."""

from __future__ import annotations

from pathlib import Path

from ikpy_llm.kernels import system


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
