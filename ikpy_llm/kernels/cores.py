"""How many cores this process may use: its affinity, cgroup quotas, and one thread per physical core."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from . import system

# Threads that pools have bound to one core: native id -> (where they may run otherwise, how many pools hold them so).
# Several pools may bind the same caller one after the other; the first one's view of its cores is the true one.
_bound: dict[int, tuple[set[int], int]] = {}
_lock = threading.Lock()


def _forget() -> None:
    """A forked child has none of the pools' threads, and one of them may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _bound.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def allowed(root: Path = Path("/")) -> list[int]:
    """One logical CPU of every physical core this process may run on, in order."""
    cpus = sorted(affinity()) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    first: dict[str, int] = {}
    for cpu in cpus:
        siblings = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        first.setdefault(siblings or f"cpu {cpu}", cpu)
    return sorted(first.values())


def can_bind() -> bool:
    """Whether threads can be bound to cores here."""
    if not hasattr(os, "sched_setaffinity"):
        system.lacks("way to bind threads to cores", "it moves them as it likes")
        return False
    return True


def affinity() -> set[int]:
    """Where the calling thread may run when no pool has bound it."""
    bound = _bound.get(threading.get_native_id())
    return bound[0] if bound else os.sched_getaffinity(0)


def n_logical() -> int:
    """Logical CPUs this process may run on."""
    return len(affinity()) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bind(cpu: int) -> int:
    """Bind the calling thread to a core until `release` is called with what this returns, its native id."""
    caller = threading.get_native_id()
    with _lock:
        before, n_pools = _bound.get(caller) or (os.sched_getaffinity(0), 0)
        _bound[caller] = before, n_pools + 1
        os.sched_setaffinity(0, {cpu})
    return caller


def release(thread: int) -> None:
    """Let a thread that `bind` bound run where it could before, once no other pool holds it."""
    with _lock:
        before, n_pools = _bound.pop(thread)
        if n_pools > 1:
            _bound[thread] = before, n_pools - 1
            return
        with suppress(OSError):  # the thread may have ended
            os.sched_setaffinity(thread, before)


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
