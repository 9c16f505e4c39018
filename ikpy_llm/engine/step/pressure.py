"""How many threads of a pool compute while other processes want the cores too (Linux).

All threads meet at every barrier, so that each gets what the slowest gets. Where another process has half of one core,
its thread is stopped for 3 or 4 ms at a time and everybody loses half. Without that thread only its own part is lost:
of 16 threads beside one neighbour 15 are nearly twice as fast as 16. Where more than half of the cores have a
neighbour, all threads together are faster: they sleep while one is missing, and so are stopped at about the same time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import threading
import time
from pathlib import Path

PERIOD = 0.05  # seconds between two looks; something is changed when two in a row say the same
MANY = 16  # threads: a look takes 15 us for each, so that larger pools are looked at less often
PRESSED = 0.2  # of the time it could have run a thread has waited for its core: then turns become short
# Nanoseconds. Generation and prompts on two threads beside four busy loops (Zen 5, SmolLM2 Q4_1): 155 and 1,220 t/s
# with turns of 0.1 ms, 137 and 990 with the system's.
TURN = 100_000
GET_SET = {"x86_64": (315, 314), "aarch64": (275, 274)}.get(platform.machine())  # sched_getattr, sched_setattr
ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, turn in ns, deadline, period
RESET_ON_FORK = 1  # what the thread starts has the system's turns
IDLE = 0.7  # of the time: a core that a thread left, and that has so little to do, gets it back


class Watch:
    """Looks at the threads of one pool from time to time and says which of them should rest."""

    def __init__(self, thread_ids: list[int], cpus: list[int]):
        """thread_ids: the system's, of all threads but the caller; cpus: the core of each thread, the caller first."""
        self.ids, self.cpus = thread_ids, cpus
        self.resting: frozenset[int] = frozenset()
        self.wanted = self.resting
        self.next = 0.0
        self.before: _Look | None = None
        self.short: set[int] = set()  # the system's numbers of the threads that have short turns

    def look(self) -> bool:
        """Called before every program. Whether `resting` has changed."""
        now = time.perf_counter()
        if now < self.next:
            return False
        self.next = now + PERIOD * max(1, len(self.cpus) / MANY)
        before, self.before = self.before, _Look(self)
        if before is None or before.caller != self.before.caller or before.resting != self.resting:
            return False
        waited, idle = self.before.since(before)
        if max(waited.values()) > PRESSED:
            self._keep_short()
        wanted = choose(waited, idle)
        changed = wanted == self.wanted and wanted != self.resting
        self.wanted = wanted
        if changed:
            self.resting = wanted
        return changed

    def _keep_short(self) -> None:
        for thread_id in {self.before.caller, *self.ids} - self.short:
            short_turns(thread_id)
            self.short.add(thread_id)


def choose(waited: dict[int, float], resting: dict[int, float]) -> frozenset[int]:
    """Which threads should rest.

    waited: of each thread that takes part, the part of the time it could have run that it waited for its core. With N
    neighbours on the core that is N / (N + 1). resting: of those that rest, how idle their cores are.
    """
    neighbours = {i: part / max(1 - part, 0.01) for i, part in waited.items()}
    taken = {i for i, idle in resting.items() if idle < IDLE}
    n = round(sum(neighbours.values())) + len(taken)
    if not n or 2 * n > len(waited) + len(resting):
        return frozenset()
    more = sorted(neighbours, key=neighbours.__getitem__, reverse=True)[: n - len(taken)]
    return frozenset([*taken, *more])


class _Look:
    """The system's clocks of the threads and cores of a pool at one moment."""

    def __init__(self, watch: Watch):
        self.caller, self.resting, self.time = threading.get_native_id(), watch.resting, time.perf_counter()
        ids = [self.caller, *watch.ids]
        self.threads = {i: _thread(ids[i]) for i in range(len(ids)) if i not in watch.resting}
        self.idle = _idle([watch.cpus[i] for i in watch.resting]) if watch.resting else {}
        self.cpus = {i: watch.cpus[i] for i in watch.resting}

    def since(self, before: _Look) -> tuple[dict[int, float], dict[int, float]]:
        """What `choose` takes."""
        waited = {}
        for i, (ran, wait) in self.threads.items():
            ran, wait = ran - before.threads[i][0], wait - before.threads[i][1]
            waited[i] = wait / (ran + wait) if ran + wait > 0 else 0.0
        passed = self.time - before.time
        idle = {i: (self.idle.get(cpu, 0) - before.idle.get(cpu, 0)) / passed for i, cpu in self.cpus.items()}
        return waited, idle


def _thread(thread_id: int) -> tuple[int, int]:
    """(ns on a core, ns runnable but waiting for one) of a thread so far; zeros where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()
        return int(words[0]), int(words[1])
    return 0, 0


def _idle(cpus: list[int]) -> dict[int, float]:
    """Seconds each of these cores has had nothing to do so far; empty where the system does not say."""
    names, found = {f"cpu{cpu}": cpu for cpu in cpus}, {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/stat").read_text().splitlines():
            words = line.split()
            if words and words[0] in names:
                found[names[words[0]]] = (int(words[4]) + int(words[5])) / os.sysconf("SC_CLK_TCK")
    return found


def short_turns(thread_id: int) -> bool:
    """Ask for short turns on the core (Linux 6.12 and later): a thread that slept while another was missing then gets
    its core back at once when that one comes. Whether the system took it; it may have other ideas.
    """
    if GET_SET is None or not hasattr(os, "sched_setaffinity"):
        return False
    syscall = ctypes.CDLL(None).syscall
    now = ctypes.create_string_buffer(ATTRIBUTES.size)
    if syscall(GET_SET[0], thread_id, now, ATTRIBUTES.size, 0):
        return False
    _, policy, flags, nice, *_ = ATTRIBUTES.unpack(now.raw)
    if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):  # real-time threads, and those that only want what is left
        return False
    wanted = ATTRIBUTES.pack(ATTRIBUTES.size, policy, flags | RESET_ON_FORK, nice, 0, TURN, 0, 0)
    return not syscall(GET_SET[1], thread_id, wanted, 0)
