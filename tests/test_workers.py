"""The worker pool: programs run on all threads, waiting costs nothing, errors and forks leave nothing stuck."""

import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from ikpy_llm.engine.step import workers as workers_module
from ikpy_llm.engine.step.workers import Workers
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.run import cores, runner


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
    return x, (one, state), program_of([(jit.Kernel("rows.rowwise.add"), words)] * n_records)


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


def test_threads_that_rest_take_no_part_until_they_are_asked_again():
    """Whoever takes part, every row is done once: all subsets of four threads, asleep and awake."""
    x, _keep, program = adds(20)
    rng, done = random.Random(3), 0
    with Workers(4) as workers:
        for step in range(200):
            resting = frozenset(i for i in (1, 2, 3) if rng.random() < 0.5)
            workers.rest(resting)
            for _ in range(rng.randrange(3)):
                workers.run(program.ctypes.data, len(program))
                done += len(program)
            assert (x == done).all()
            if step % 50 == 0:
                time.sleep(0.01)  # those that wait go to sleep in Python
        workers.rest(frozenset())
        workers.run(program.ctypes.data, len(program))
        assert (x == done + len(program)).all()
        assert comes_to_rest()


def test_the_callers_core_is_left_by_changing_with_another():
    x, _keep, program = adds(20)
    with Workers(3) as workers:
        workers._shared.cpus[:] = cpus = cores.allowed() * 3
        workers.rest(frozenset([0, 2]))
        workers.run(program.ctypes.data, len(program))
        assert workers.resting == {1, 2}
        assert workers._shared.cpus[:2] == cpus[1::-1]
    assert (x == 20).all()


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
import os, random, signal, time
from test_workers import adds
from ikpy_llm.engine.step.workers import Workers

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
x, _keep, program = adds(2, 64)
rng, stopped, end = random.Random(1), 0, time.monotonic() + 2
cpus = getattr(os, "sched_getaffinity", lambda _: None)
before = cpus(0)
with Workers(2, pin=True) as workers:
    while stopped < 50 or time.monotonic() < end:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-4))
            while True:
                workers.run(program.ctypes.data, len(program))
        except KeyboardInterrupt:
            stopped += 1
        assert cpus(0) == before
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


binds = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound here")
CPUS_OF_A_CHILD = [sys.executable, "-S", "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]


@binds
def test_what_the_caller_starts_may_run_on_every_core():
    """A child inherits the cores of the thread that starts it, so the caller is not bound when it comes back."""
    _x, _keep, program = adds(5)
    before, all_cores, found = os.sched_getaffinity(0), cores.allowed(), []
    with Workers(2, pin=True) as a, Workers(3, pin=True) as b:
        for pool in (a, b) * 3:
            pool.run(program.ctypes.data, 5)
            assert os.sched_getaffinity(0) == before and cores.allowed() == all_cores
            pool.run(program.ctypes.data, 5)
            thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
            thread.start()
            thread.join()
            pool.run(program.ctypes.data, 5)
            child = subprocess.run(CPUS_OF_A_CHILD, capture_output=True, text=True, check=True)
            assert child.stdout.strip() == str(sorted(before))
    assert found == [before] * 6


@binds
def test_the_caller_computes_on_its_core():
    """A caller that is elsewhere when a program begins is bound until it ends."""
    _x, _keep, program = adds(300, 1 << 16)
    before, own, seen = os.sched_getaffinity(0), cores.allowed()[0], set()
    if len(before) == 1:
        pytest.skip("one core")

    def run():
        os.sched_setaffinity(0, before - {own})
        caller.append(threading.get_native_id())
        while not done.is_set():
            workers.run(program.ctypes.data, len(program))
            outside.append(os.sched_getaffinity(0))

    caller, outside, done, end = [], [], threading.Event(), time.monotonic() + 60
    with Workers(2, pin=True) as workers:
        thread = threading.Thread(target=run)
        thread.start()
        while frozenset([own]) not in seen and time.monotonic() < end:
            time.sleep(0.001)
            seen |= {frozenset(os.sched_getaffinity(each)) for each in caller}
        done.set()
        thread.join()
    assert frozenset([own]) in seen and outside and all(cpus == before - {own} for cpus in outside)
    assert os.sched_getaffinity(0) == before


@binds
def test_cores_that_the_caller_chose_stay_its_own():
    """Whatever a thread was bound to before a program, it is afterwards."""
    _x, _keep, program = adds(5)
    before = os.sched_getaffinity(0)
    try:
        with Workers(2, pin=True) as workers:
            for cpu in sorted(before):
                os.sched_setaffinity(0, {cpu})
                workers.run(program.ctypes.data, 5)
                assert os.sched_getaffinity(0) == {cpu}
    finally:
        os.sched_setaffinity(0, before)


def test_workers_wait_as_long_as_they_should():
    """2 ms by the clock: the calls that measure how long a pause takes must not count as pauses."""
    work = jit.load([workers_module.KERNELS[1]])[workers_module.KERNELS[1]]
    pauses, best = int(workers_module.PATIENCE * workers_module._pauses_per_second(work)), 1.0
    loop, sync = jit.function(work), np.zeros(runner.SYNC + runner.OWN_WORDS, np.int64)
    words = jit.pack_words((sync, sync[runner.SYNC :].ctypes.data, pauses, 0, 0, 0))
    for _ in range(20):
        start = time.perf_counter()
        loop(ctypes.addressof(words), 0, 1)
        best = min(best, time.perf_counter() - start)
    assert 0.5 * workers_module.PATIENCE < best < 4 * workers_module.PATIENCE


@pytest.mark.parametrize(
    ("asked", "used", "said"), [(2, 2, ""), (4, 4, "share 2 cores"), (16, 4, "16 .* and 4 are used")]
)
def test_more_threads_than_cpus_are_not_used(monkeypatch, caplog, asked, used, said):
    """Two cores of two logical CPUs each."""
    monkeypatch.setattr(cores, "at_once", lambda: 4)
    monkeypatch.setattr(cores, "allowed", lambda: [0, 2])
    assert cores.usable(asked) == used
    assert len(caplog.records) == bool(said)
    assert re.search(said, caplog.text)


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


def test_without_affinity_threads_are_physical_cores(monkeypatch, tmp_path):
    """macOS and Windows; two logical CPUs of a core share its multipliers."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for physical, n in (4, 4), (None, 8):
        monkeypatch.setattr(psutil, "cpu_count", lambda logical, found=physical: found)
        assert cores.allowed(tmp_path) == list(range(n))
        assert cores.default_threads(tmp_path) == n
    assert cores.n_logical() == 8
