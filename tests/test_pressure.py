"""Threads beside other processes: who rests, how long a turn is, and that waiting takes no core."""

import subprocess
import sys
import time

import numpy as np
import pytest
from test_workers import program_of

from ikpy_llm.engine.step import pressure
from ikpy_llm.engine.step.workers import Workers
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.run import runner


@pytest.mark.parametrize(
    ("waited", "idle", "resting"),
    [
        ({0: 0.0, 1: 0.0}, {}, set()),
        ({0: 0.02, 1: 0.5}, {}, {1}),  # one neighbour of two cores: its core is left to it
        ({0: 0.33, 1: 0.35}, {}, {1}),  # it has been on both
        ({0: 0.5, 1: 0.5}, {}, set()),  # two on two cores: all stay
        ({0: 0.67, 1: 0.67}, {}, set()),
        ({0: 0.0}, {1: 0.0}, {1}),  # still there
        ({0: 0.0}, {1: 1.0}, set()),  # gone
        ({0: 0.5}, {1: 0.0}, set()),  # another one came
        ({i: 0.5 * (i in (3, 9)) for i in range(16)}, {}, {3, 9}),
        ({i: 0.5 * (i < 9) for i in range(16)}, {}, set()),
        ({i: 0.5 * (i == 4) for i in range(15)}, {15: 0.0}, {4, 15}),
        (dict.fromkeys(range(14), 0.0), {14: 1.0, 15: 0.1}, {15}),
        ({0: 1.0, 1: 0.0, 2: 0.0}, {}, set()),  # has not run at all: a hundred neighbours
    ],
)
def test_how_many_threads_leave_their_cores_to_others(waited, idle, resting):
    assert pressure.choose(waited, idle) == resting


def test_threads_rest_when_two_looks_say_the_same(monkeypatch):
    monkeypatch.setattr(pressure, "PERIOD", 0)
    times = iter([(0, 0), (10, 0), (10, 0), (15, 5), (20, 10), (20, 15), (25, 15), (30, 20)])
    monkeypatch.setattr(pressure, "_thread", lambda i: next(times) if i == 99 else (0, 0))
    monkeypatch.setattr(pressure, "short_turns", lambda _: True)
    monkeypatch.setattr(pressure, "_idle", lambda cpus: {})
    watch = pressure.Watch([99], [0, 1])
    seen = []
    for _ in range(5):
        seen.append((watch.look(), set(watch.resting)))
    assert seen == [(False, set()), (False, set()), (False, set()), (False, set()), (True, {1})]


@pytest.mark.skipif(sys.platform != "linux", reason="threads sleep at barriers on Linux only")
def test_a_thread_that_waits_for_another_uses_no_core():
    """Rows of one part, which the last thread computes: most of the caller's waiting is sleep."""
    width = 1 << 22
    x, ones, y, state = (
        np.ones(width, np.float32),
        np.ones(width, np.float32),
        np.zeros(width, np.float32),
        [1, 0, 1, 0],
    )
    state = np.array(state, np.int64)
    words = (x, ones, 0, y, width, 1, np.float32(0), state)
    program = program_of([(jit.Kernel("rows.rowwise.rms_norm"), words)] * 100, barriers=False)
    program[-1, runner.FLAGS] = runner.BARRIER
    with Workers(2) as workers:
        worker = workers._threads[0].native_id
        before, start = pressure._thread(worker)[0], time.thread_time()
        workers.run(program.ctypes.data, len(program))
        own, other = time.thread_time() - start, (pressure._thread(worker)[0] - before) / 1e9
    assert (y == 1).all()
    assert own < other / 3, (own, other)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_short_turns_keep_what_else_was_chosen():
    code = """
import os, threading
from ikpy_llm.engine.step import pressure
os.setpriority(os.PRIO_PROCESS, 0, 7)
taken = pressure.short_turns(threading.get_native_id())
policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
print(os.getpriority(os.PRIO_PROCESS, 0), policy == os.SCHED_OTHER, taken in (True, False))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "True", "True"]
    assert not pressure.short_turns(2**30)
