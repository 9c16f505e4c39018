"""The worker threads: they sit in machine code (GIL released), spin a bounded time for the next program and then sleep.

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

from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels import cores, forks, jit, runner, system

PATIENCE = 2e-3  # seconds a worker spins for the next program: longer than sampling takes, too short to be noticed
# Seconds a barrier spins before it offers the core to others: a thread that waits for one whose core another process
# has taken must not give up its own core's share too. Generation on two threads (Zen 5, SmolLM2 Q4_1) with one core
# taken by a busy loop, against 200 us, in turns: 0.80 to 0.88 with 20 us, 0.96 to 1.01 with 60 us and with 1 ms. A
# caller that is never bound has 0.5 to 1, as the system moves both threads to one core.
SPIN = 200e-6
CALIBRATION = 20_000  # pauses: 0.02 to 1 ms, so that the call itself (1 us and more) does not count
KERNELS = (jit.Kernel("runner.run", can_bind=runner.CAN_BIND), jit.Kernel("runner.work"))


class _Shared:
    """What the threads hold; apart from Workers, so that a forgotten Workers can be collected and end them."""

    def __init__(self, n_threads: int, cpus: list[int]):
        self.n_threads, self.cpus, self.pid = n_threads, cpus, os.getpid()
        self.sync = np.zeros(runner.SYNC, np.int64)
        self.seen = np.zeros((n_threads, 16), np.int64)  # generations each thread has done, a cache line pair each
        # The caller takes the lock itself, not `with wake`: Condition's methods are Python, so Ctrl-C could strike
        # between taking the lock and being in the block (or leaving it and giving it back), and it would stay taken.
        self.lock = threading.RLock()
        self.wake = threading.Condition(self.lock)
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
                while not self.closing and self.seen[ith, 0] >= self.requested:
                    self.wake.wait()
                if self.closing:
                    return

    def close(self) -> None:
        if os.getpid() != self.pid:  # a forked child: the threads are not here, and one of them may have held the lock
            return
        with self.lock:
            self.closing = True
            self.wake.notify_all()


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
            self._home[runner.OWN + cpus[0] // 8] = 1 << cpus[0] % 8
            self._home[runner.CORE : runner.CORE + 8].view(np.int64)[0] = cpus[0]
        self._words[:] = (0, 0, spin, s.sync.ctypes.data, self._home.ctypes.data if pin else 0)
        self._threads = []
        for ith in range(1, self.n_threads):
            words = jit.pack_words(
                (s.sync.ctypes.data, s.seen[ith].ctypes.data, int(PATIENCE * self._per_second), spin)
            )
            t = threading.Thread(target=s.serve, args=(self._work, words, ith), name=f"ikpy-{ith}", daemon=True)
            try:
                system.start(t, f"the model (the {ith + 1}. of {n}); fewer are chosen with -t")
            except IkpyError:
                s.close()  # ends those that run
                s.pid = 0  # a fork that could not start them tries again
                raise
            self._threads.append(t)
        self._finalizer = weakref.finalize(self, s.close)

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
        try:
            if self.n_threads > 1:
                with s.lock:
                    s.requested += 1
                    s.wake.notify_all()
            self._words[0], self._words[1] = program, count
            self._run(ctypes.addressof(self._words), 0, self.n_threads)
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
    loop, sync, best = jit.function(work), np.zeros(runner.SYNC + 1, np.int64), 1.0
    words = jit.pack_words((sync, sync[runner.SYNC :].ctypes.data, CALIBRATION, 0))
    for _ in range(3):
        start = time.perf_counter()
        loop(ctypes.addressof(words), 0, 1)
        best = min(best, time.perf_counter() - start)
    return CALIBRATION / best
