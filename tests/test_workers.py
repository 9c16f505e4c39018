"""The worker pool: programs run on all threads, waiting costs nothing, errors and forks leave nothing stuck."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ikpy_llm.engine.workers import Workers
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels import cores, jit, runner


def program_of(records, barriers=True):
    """int64 [n][RECORD] of (kernel, words) pairs, a barrier after each."""
    addresses = jit.load([k for k, _ in records])
    out = np.zeros((len(records), runner.RECORD), np.int64)
    for row, (kernel, words) in zip(out, records, strict=True):
        row[runner.KERNEL], row[runner.FLAGS] = addresses[kernel], runner.BARRIER * barriers
        row[runner.ARGS : runner.ARGS + len(words)] = np.frombuffer(jit.pack_words(words), np.int64)[: len(words)]
    return out


def adds(n_records, width=1024):
    """A program that adds 1.0 to a vector n_records times: rows split over threads, so every barrier matters."""
    n_rows = 7
    x, one = np.zeros((n_rows, width), np.float32), np.ones((n_rows, width), np.float32)
    state = np.array([n_rows, 0, n_rows, 0], np.int64)
    words = (x, one, x, width, state)
    return x, (one, state), program_of([(jit.Kernel("rowwise.add"), words)] * n_records)


def comes_to_rest(seconds=60):
    """Does this process use no CPU from some time on? On a busy machine workers take a while to have spun enough."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.process_time()
        time.sleep(0.3)
        if time.process_time() - start < 0.02:
            return True
    return False


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_runs_every_record_on_every_thread(n_threads):
    x, _keep, program = adds(300)
    with Workers(n_threads) as workers:
        for _ in range(20):
            workers.run(program.ctypes.data, len(program))
    assert (x == 6000).all()


def test_only_as_many_records_as_asked():
    x, _keep, program = adds(10)
    with Workers(2) as workers:
        workers.run(program.ctypes.data, 3)
    assert (x == 3).all()


def test_parked_workers_use_no_cpu_and_wake_up():
    x, _keep, program = adds(5)
    with Workers(3) as workers:
        workers.run(program.ctypes.data, 5)
        assert comes_to_rest()
        workers.run(program.ctypes.data, 5)
    assert (x == 10).all()


def test_close_ends_the_threads_and_refuses_more():
    _x, _keep, program = adds(1)
    before = threading.active_count()
    workers = Workers(3)
    assert threading.active_count() == before + 2
    workers.close()
    workers.close()
    assert threading.active_count() == before
    with pytest.raises(IkpyError, match="closed"):
        workers.run(program.ctypes.data, 1)


def test_a_forgotten_pool_ends_its_threads():
    before = threading.active_count()
    workers = Workers(2)
    del workers
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, even where who started the tests has it ignored (a shell's background job)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_leaves_nothing_stuck(interrupts):
    x, _keep, program = adds(2000, 16384)
    with Workers(2) as workers:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        n = 0
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                workers.run(program.ctypes.data, len(program))
                n += 1
        timer.join()
        workers.run(program.ctypes.data, len(program))
        assert x.min() == x.max() >= 2000 * (n + 1)
        assert comes_to_rest()


INTERRUPTED = """
import random, signal, time
from test_workers import adds
from ikpy_llm.engine.workers import Workers

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
x, _keep, program = adds(2, 64)
rng, stopped, end = random.Random(1), 0, time.monotonic() + 2
with Workers(2) as workers:
    while stopped < 50 or time.monotonic() < end:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-4))
            while True:
                workers.run(program.ctypes.data, len(program))
        except KeyboardInterrupt:
            stopped += 1
        workers.run(program.ctypes.data, len(program))
        assert x.min() == x.max()
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_interrupts_at_any_moment_leave_nothing_stuck():
    """In a process of its own, because what is stuck here is machine code."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", INTERRUPTED], check=True, timeout=300, env=env)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_child_starts_its_own_threads():
    x, _keep, program = adds(4)
    with Workers(2) as workers:
        workers.run(program.ctypes.data, 4)
        child = os.fork()
        if child == 0:
            try:
                workers.run(program.ctypes.data, 4)
                os._exit(0 if (x == 8).all() else 1)
            except BaseException:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        workers.run(program.ctypes.data, 4)
    assert (x == 8).all()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound here")
def test_the_caller_is_bound_only_while_workers_wait():
    _x, _keep, program = adds(5)
    before = os.sched_getaffinity(0)
    with Workers(2, pin=True) as workers:
        for _ in range(3):
            workers.run(program.ctypes.data, 5)
            assert os.sched_getaffinity(0) == {cores.allowed()[0]} or len(before) == 1
        deadline = time.monotonic() + 60
        while os.sched_getaffinity(0) != before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.sched_getaffinity(0) == before
        other = threading.Thread(target=workers.run, args=(program.ctypes.data, 5))
        other.start()
        other.join()
        workers.run(program.ctypes.data, 5)
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound here")
def test_two_pools_leave_the_caller_where_it_was():
    """The second pool finds the caller bound by the first; what it gives back must not be that."""
    _x, _keep, program = adds(5)
    before, all_cores = os.sched_getaffinity(0), cores.allowed()
    with Workers(2, pin=True) as a, Workers(2, pin=True) as b:
        for first, second in ((a, b), (b, a)) * 3:
            first.run(program.ctypes.data, 5)
            second.run(program.ctypes.data, 5)
            assert cores.allowed() == all_cores  # though the caller is bound
            deadline = time.monotonic() + 60
            while os.sched_getaffinity(0) != before and time.monotonic() < deadline:
                time.sleep(0.005)
            assert os.sched_getaffinity(0) == before
        a.run(program.ctypes.data, 5)
        b.run(program.ctypes.data, 5)
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 3.0),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/x\n1:name=systemd:/\n",
          "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n",
          "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"proc/self/cgroup": "4:cpu:/host/path\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, None),
        ({"proc/self/cgroup": "4:cpu:/host/path\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n"}, 2.0),
        ({}, None),
    ],
)  # fmt: skip
def test_cgroup_quota(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.quota(tmp_path) == expected


def test_default_threads_respect_quota_and_siblings(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        file = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text("0,2\n" if cpu in (0, 2) else "1,3\n")
    assert cores.allowed(tmp_path) == [0, 1]
    assert cores.default_threads(tmp_path) == 2
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for limit, n in (("50000", 1), ("199000", 1), ("200000", 2), ("900000", 2)):
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{limit} 100000\n")
        assert cores.default_threads(tmp_path) == n
