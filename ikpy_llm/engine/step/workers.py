"""The worker threads: they sit in machine code (GIL released), spin a while for the next program, then sleep.

Thread 0 is the caller's. The others are Python threads that call `runner.work`; when it returns because nothing came,
they wait on a condition variable and use no CPU. After a fork the child has no such threads: its first program starts
new ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
import weakref

import numpy as np

from ikpy_llm import forks, system
from ikpy_llm.engine.step import pressure
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.run import cores, runner

PATIENCE = 200e-6  # seconds a worker spins for the next program: about what sampling takes
IDLE = 2_000_000  # nanoseconds it then sleeps in machine code, where the next program wakes it faster than in Python
# Seconds a thread spins at a barrier before it sleeps. Longer than what differs between threads that have their cores,
# so that a system call comes only where one is missing; the core it spins on is lost to everybody meanwhile. Generation
# on two threads beside 1, 2 and 4 busy loops (Zen 5, SmolLM2 Q4_1, t/s): 150, 145, 56 with 50 us, 246, 228, 140 with
# 200 us, 252, 217, 117 with 1 ms.
SPIN = 200e-6
CALIBRATION = 20_000  # pauses: 0.02 to 1 ms, so that the call itself (1 us and more) does not count
KERNELS = (jit.Kernel("run.runner.run", can_bind=runner.CAN_BIND), jit.Kernel("run.runner.work"))


class _Shared:
    """What the threads hold; apart from Workers, so that a forgotten Workers can be collected and end them."""

    def __init__(self, n_threads: int, cpus: list[int]):
        self.n_threads, self.cpus, self.pid = n_threads, cpus, os.getpid()
        self.sync = np.zeros(runner.SYNC, np.int64)
        self.own = np.zeros((n_threads, runner.OWN_WORDS), np.int64)  # a cache line pair for each thread
        self.own[:, runner.RANK] = range(n_threads)
        # The caller takes the lock itself, not `with wake`: Condition's methods are Python, so Ctrl-C could strike
        # between taking the lock and being in the block (or leaving it and giving it back), and it would stay taken.
        self.lock = threading.RLock()
        self.wake = threading.Condition(self.lock)
        self.rest = threading.Condition(self.lock)  # of threads that take no part
        self.requested = 0  # generations asked for; equals sync[GENERATION] except while one is being started
        self.closing = False

    def serve(self, work, words, ith: int) -> None:
        """Body of thread `ith`."""
        if self.cpus:
            with contextlib.suppress(OSError):  # CPUs may be taken from a container while it runs
                os.sched_setaffinity(0, {self.cpus[ith % len(self.cpus)]})  # 0: this thread only
        while True:
            work(ctypes.addressof(words), ith, self.n_threads)
            with self.wake:
                while not self.closing:
                    if self.own[ith, runner.FROM] == runner.NEVER:
                        self.rest.wait()
                    elif self.own[ith, runner.SEEN] >= self.requested:
                        self.wake.wait()
                    else:
                        break
                if self.closing:
                    return

    def close(self) -> None:
        if os.getpid() != self.pid:  # a forked child: the threads are not here, and one of them may have held the lock
            return
        with self.lock:
            self.closing = True
            self.wake.notify_all()
            self.rest.notify_all()

    def take_part(self, resting: frozenset[int]) -> None:
        """From the next program on all threads take part but these."""
        with self.lock:
            new = sorted(set(range(self.n_threads)) - resting)
            for ith in resting:
                self.own[ith, runner.FROM] = runner.NEVER
            for rank, ith in enumerate(new):
                if self.own[ith, runner.FROM] == runner.NEVER:
                    self.own[ith, runner.FROM] = int(self.sync[runner.GENERATION]) + 1
                self.own[ith, runner.RANK] = rank
            self.rest.notify_all()


class Workers:
    """A pool of `n_threads` (the caller counts as one). `run` runs a program; `close` ends the threads."""

    def __init__(self, n_threads: int = 0, pin: bool | None = None):
        """pin: bind each thread to a core while it computes; None = if there are as many threads as cores.

        With fewer threads the system finds idle cores better, and two pools would meet on the first ones.
        """
        self.n_threads = n_threads or cores.default_threads()
        addresses = jit.load(KERNELS)
        self._run, self._work = (jit.function(addresses[k]) for k in KERNELS)
        self._per_second = _pauses_per_second(addresses[KERNELS[1]]) if self.n_threads > 1 else 0
        self._pin, self._threads = pin, []
        # Held while a program runs. The thread that has it may come back: a signal's handler may close the pool.
        forks.lock(self, "_lock", threading.RLock)
        self._running = self._ends = False
        self._words, self._home = (ctypes.c_int64 * 5)(), np.zeros(runner.HOME, np.uint8)
        self._shared = self._finalizer = None
        self._start()

    def _start(self) -> None:
        cpus, n = cores.allowed(), self.n_threads
        pin = n > 1 and (n == len(cpus) if self._pin is None else self._pin) and cores.can_bind()
        s = self._shared = _Shared(n, cpus if pin else [])
        spin = int(SPIN * self._per_second) if n <= cores.n_logical() else 0  # who waits may have the core of who works
        self._home[:] = 0
        if pin:
            self._live_on(cpus[0])
        self._words[:] = (0, 0, spin, s.sync.ctypes.data, self._home.ctypes.data if pin else 0)
        self._threads, self._n_part, self.resting = [], n, frozenset()
        for ith in range(1, self.n_threads):
            words = jit.pack_words(
                (s.sync.ctypes.data, s.own[ith].ctypes.data, int(PATIENCE * self._per_second), IDLE, spin)
            )
            t = threading.Thread(target=s.serve, args=(self._work, words, ith), name=f"ikpy-{ith}", daemon=True)
            try:
                system.start(t, f"the model (the {ith + 1}. of {n}); fewer are chosen with -t")
            except IkpyError:
                s.close()  # ends those that run
                s.pid = 0  # a fork that could not start them tries again
                raise
            self._threads.append(t)
        self._watch = None
        if pin and n <= len(cpus):
            self._watch = pressure.Watch([t.native_id for t in self._threads], s.cpus)
        self._finalizer = weakref.finalize(self, s.close)

    def rest(self, resting: frozenset[int]) -> None:
        """From the next program on these threads take no part. The caller's, 0, changes cores with one that does."""
        s = self._shared
        if 0 in resting:
            ith = min(set(range(self.n_threads)) - resting)
            resting = resting - {0} | {ith}
            if s.cpus:
                s.cpus[0], s.cpus[ith] = s.cpus[ith], s.cpus[0]
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(self._threads[ith - 1].native_id, {s.cpus[ith]})
                self._live_on(s.cpus[0])
        s.take_part(resting)
        self.resting, self._n_part = resting, self.n_threads - len(resting)

    def _live_on(self, cpu: int) -> None:
        """The caller's core."""
        self._home[: runner.CPU_SET] = 0
        self._home[runner.OWN + cpu // 8] = 1 << cpu % 8
        self._home[runner.CORE : runner.CORE + 8].view(np.int64)[0] = cpu

    def run(self, program: int, count: int) -> None:
        """Run `count` records at address `program` on all threads; returns when every thread has finished."""
        with self._lock:
            try:
                self._running = True
                if self._ends:
                    raise IkpyError("this model has been closed")
                self._run_it(program, count)
            finally:
                self._running = False
                if self._ends:
                    self._end()

    def _run_it(self, program: int, count: int) -> None:
        """`run`, by the thread that has the lock."""
        if self._shared.pid != os.getpid():
            self._finalizer.detach()
            self._start()
        s = self._shared
        if self._watch and self._watch.look():
            self.rest(self._watch.resting)
            self._watch.resting = self.resting
        try:
            if self._n_part > 1:
                with s.lock:
                    s.requested += 1
                    s.wake.notify_all()
            self._words[0], self._words[1] = program, count
            self._run(ctypes.addressof(self._words), 0, self._n_part)
        finally:  # interrupted before the program was published: nothing was asked for
            s.requested = int(s.sync[runner.GENERATION])

    def close(self) -> None:
        """End the threads, when the program that runs has finished; the pool cannot be used afterwards."""
        self._ends = True  # seen by the next `run`, whoever gets the lock first
        with self._lock:
            if not self._running:  # else this is within `run`, which ends the threads when it is done
                self._end()

    def _end(self) -> None:
        self._finalizer()
        if self._shared.pid == os.getpid():
            for t in self._threads:
                t.join()
        self._threads = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        self.close()


@functools.cache
def _pauses_per_second(work: int) -> float:
    """How fast this CPU executes the waiting loop at address `work`; the fastest of three, because others may take the
    core meanwhile.
    """
    loop, sync, best = jit.function(work), np.zeros(runner.SYNC + runner.OWN_WORDS, np.int64), 1.0
    words = jit.pack_words((sync, sync[runner.SYNC :].ctypes.data, CALIBRATION, 0, 0))
    for _ in range(3):
        start = time.perf_counter()
        loop(ctypes.addressof(words), 0, 1)
        best = min(best, time.perf_counter() - start)
    return CALIBRATION / best
