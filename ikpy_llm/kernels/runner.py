"""Machine code that runs programs: `run` on the caller's thread, `work` on every other; compiled like any kernel.

Program: records of RECORD words: [kernel address, flags, claim counter, arguments...]. Flag BARRIER: all threads meet
after the record. Sync block, int64 words on cache lines of their own:
    GENERATION        goes up by one when a program is published
    ARRIVED, PHASE    the barrier: threads that came, barriers passed
    PROGRAM, COUNT    address of the records, how many to run
Every thread of the pool takes part in every program. `spin` counts pauses before a waiting thread offers its core.
"""

from __future__ import annotations

import os

from . import simd

CAN_BIND = hasattr(os, "sched_setaffinity")  # Linux
CPU_SET = 1024  # bytes of a set of logical CPUs: as many as Linux can have
# Home block: the set that is a thread's own core, the set of where it may run otherwise, then two int64: the number of
# its core, whether it is bound to it.
OWN, BEFORE, CORE, BOUND = 0, CPU_SET, 2 * CPU_SET, 2 * CPU_SET + 8
HOME = 2 * CPU_SET + 16
RECORD = 32  # words per record
KERNEL, FLAGS, CLAIM, ARGS = 0, 1, 2, 3  # words of a record
MAX_ARGS = RECORD - ARGS
BARRIER = 1

_LINE = 16  # words: two cache lines, because x86 fetches pairs
GENERATION, ARRIVED, PHASE, PROGRAM, COUNT = 0, _LINE, 2 * _LINE, 3 * _LINE, 3 * _LINE + 1
SYNC = 4 * _LINE  # words of the sync block


def _binding(can_bind: bool):
    """(stay, leave) as inlined functions over the address of a Home block, 0 for a thread that is not kept on a core.

    stay: bind this thread to its core if it runs on another one; leave: let it run where it could before.
    """
    inline = simd.inline
    if not can_bind:
        return inline(lambda home: 0), inline(lambda home: 0)
    get_affinity, set_affinity, this_cpu = simd.get_affinity, simd.set_affinity, simd.this_cpu
    load_i64, store_i64 = simd.load_i64, simd.store_i64

    @inline
    def stay(home):
        away = home != 0 and load_i64(home + BOUND) == 0 and this_cpu() != load_i64(home + CORE)
        if away and get_affinity(home + BEFORE, CPU_SET) == 0 and set_affinity(home + OWN, CPU_SET) == 0:
            store_i64(home + BOUND, 1)
        return 0

    @inline
    def leave(home):
        if home and load_i64(home + BOUND):
            set_affinity(home + BEFORE, CPU_SET)
            store_i64(home + BOUND, 0)
        return 0

    return stay, leave


def _parts(stay):
    """(barrier, run_records) as inlined functions; stay(home): see _binding."""
    inline, atomic_load, atomic_store, atomic_add = simd.inline, simd.atomic_load, simd.atomic_store, simd.atomic_add
    pause, sched_yield, call_kernel, load_i64 = simd.pause, simd.sched_yield, simd.call_kernel, simd.load_i64
    arrived, phase = 8 * ARRIVED, 8 * PHASE

    @inline
    def barrier(sync, nth, spin, home):
        before = atomic_load(sync + phase)  # it cannot change until this thread arrives
        if atomic_add(sync + arrived, 1) == nth - 1:
            atomic_store(sync + arrived, 0)
            atomic_add(sync + phase, 1)
        else:
            n = 0
            while atomic_load(sync + phase) == before:
                if n < spin:
                    n += 1
                    pause()
                else:
                    stay(home)  # it may have been moved to the core of the thread it waits for
                    sched_yield()

    @inline
    def run_records(program, count, sync, ith, nth, spin, home):
        record = program
        for _ in range(count):
            call_kernel(load_i64(record), record + 8 * ARGS, ith, nth)
            if load_i64(record + 8 * FLAGS) & BARRIER and nth > 1:
                barrier(sync, nth, spin, home)
            record += 8 * RECORD

    return barrier, run_records


def run(can_bind: bool):
    """Thread 0: publish the program, take part in it, return when all threads have finished it.

    It is kept on one core meanwhile, where `home` names one: bound only once it is on another, because system calls for
    every token cost a sixth of the speed where another process wants the core. Python never sees it bound: what the
    caller starts, a process or a thread, would inherit that and keep it.
    """
    atomic_store, atomic_add, store_i64 = simd.atomic_store, simd.atomic_add, simd.store_i64
    stay, leave = _binding(can_bind)
    barrier, run_records = _parts(stay)

    def run(program, count, spin, sync, home, ith, nth):
        stay(home)
        for i in range(count):
            store_i64(program + 8 * (i * RECORD + CLAIM), 0)
        if nth > 1:
            atomic_store(sync + 8 * PROGRAM, program)
            atomic_store(sync + 8 * COUNT, count)
            atomic_add(sync + 8 * GENERATION, 1)
        run_records(program, count, sync, ith, nth, spin, home)
        if nth > 1:
            barrier(sync, nth, spin, home)
        leave(home)

    return run


def work():
    """Another thread: wait at most `patience` pauses for a program, take part in it, wait again; return when none came.

    `seen` is the address of this thread's count of generations.
    """
    atomic_load, pause = simd.atomic_load, simd.pause
    load_i64, store_i64 = simd.load_i64, simd.store_i64
    barrier, run_records = _parts(_binding(can_bind=False)[0])

    def work(sync, seen, patience, spin, ith, nth):
        done = load_i64(seen)
        waited = 0
        while waited < patience:
            if atomic_load(sync + 8 * GENERATION) == done:
                waited += 1
                pause()
                continue
            done += 1
            run_records(atomic_load(sync + 8 * PROGRAM), atomic_load(sync + 8 * COUNT), sync, ith, nth, spin, 0)
            barrier(sync, nth, spin, 0)
            store_i64(seen, done)
            waited = 0

    return work
