"""How many cores this process may use: its affinity, cgroup quotas, and one thread per physical core."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ikpy_llm import system

log = logging.getLogger("ikpy.threads")


def allowed(root: Path = Path("/")) -> list[int]:
    """One logical CPU of every physical core this process may run on, in order."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(_n_physical())
    first: dict[str, int] = {}
    for cpu in cpus:
        siblings = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        first.setdefault(siblings or f"cpu {cpu}", cpu)
    return sorted(first.values())


def _n_physical() -> int:
    """Physical cores of the machine, where the system does not say which of them this process may use."""
    import psutil

    try:
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    except OSError:
        return os.cpu_count() or 1


def can_bind() -> bool:
    """Whether threads can be bound to cores here."""
    if not hasattr(os, "sched_setaffinity"):
        system.lacks("way to bind threads to cores", "it moves them as it likes")
        return False
    return True


def n_logical() -> int:
    """Logical CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once() -> int:
    """Threads that can compute at the same time; more take turns, and all wait for all many times a token."""
    return n_logical()


def usable(n_threads: int) -> int:
    """As many threads as are asked for, or as can compute at the same time; says in the log where that is fewer."""
    most, n_cores = at_once(), len(allowed())
    if n_threads > most:
        log.warning("%d threads are asked for and %d are used, as many as this process has CPUs", n_threads, most)
        return most
    if n_threads > n_cores:
        log.warning("%d threads share %d cores, which is slower than one for each (-t %d)", n_threads, n_cores, n_cores)
    return n_threads


def quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time the control groups (v2 or v1) of this process allow; None = unlimited."""
    found = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / name for name in (controllers, "cpu")]
            base, read = next((m for m in mounts if m.is_dir()), mounts[0]), _quota_v1
        else:
            continue
        # a parent's limit holds too; inside a container the path may be the host's and only the mount itself exists
        folder = base / path.lstrip("/")
        found += [read(f) for f in (folder, *folder.parents) if f == base or base in f.parents]
    return min((q for q in found if q), default=None)


def _quota_v2(folder: Path) -> float | None:
    limit, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
    return _ratio(limit, period or "100000")


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us") or "-1", _read(folder / "cpu.cfs_period_us") or "100000")


def _ratio(limit: str, period: str) -> float | None:
    try:
        return int(limit) / int(period) if int(limit) > 0 and int(period) > 0 else None
    except ValueError:  # "max"
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def default_threads(root: Path = Path("/")) -> int:
    """Threads to use unless told otherwise: physical cores, within the quota (rounded down), at least 1."""
    n, limit = len(allowed(root)), quota(root)
    return max(1, n if limit is None else min(n, int(limit)))
