"""Machine code that runs programs: `run` on the caller's thread, `work` on every other; compiled like any kernel.

Program: records of RECORD words: [kernel address, flags, claim counter, arguments...]. Flag BARRIER: all threads meet
after the record. Sync block, int64 words on cache lines of their own:
    GENERATION        goes up by one when a program is published
    ARRIVED, PHASE    the barrier: threads that came, barriers passed
    PROGRAM, COUNT    address of the records, how many to run
Every thread of the pool takes part in every program. `spin` counts pauses before a waiting thread offers its core.
"""

from __future__ import annotations

from . import simd

RECORD = 32  # words per record
KERNEL, FLAGS, CLAIM, ARGS = 0, 1, 2, 3  # words of a record
MAX_ARGS = RECORD - ARGS
BARRIER = 1

_LINE = 16  # words: two cache lines, because x86 fetches pairs
GENERATION, ARRIVED, PHASE, PROGRAM, COUNT = 0, _LINE, 2 * _LINE, 3 * _LINE, 3 * _LINE + 1
SYNC = 4 * _LINE  # words of the sync block


def _parts():
    """(barrier, run_records) as inlined functions."""
    inline, atomic_load, atomic_store, atomic_add = simd.inline, simd.atomic_load, simd.atomic_store, simd.atomic_add
    pause, sched_yield, call_kernel, load_i64 = simd.pause, simd.sched_yield, simd.call_kernel, simd.load_i64
    arrived, phase = 8 * ARRIVED, 8 * PHASE

    @inline
    def barrier(sync, nth, spin):
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
                    sched_yield()

    @inline
    def run_records(program, count, sync, ith, nth, spin):
        record = program
        for _ in range(count):
            call_kernel(load_i64(record), record + 8 * ARGS, ith, nth)
            if load_i64(record + 8 * FLAGS) & BARRIER and nth > 1:
                barrier(sync, nth, spin)
            record += 8 * RECORD

    return barrier, run_records


def run():
    """Thread 0: publish the program, take part in it, return when all threads have finished it."""
    atomic_store, atomic_add, store_i64 = simd.atomic_store, simd.atomic_add, simd.store_i64
    barrier, run_records = _parts()

    def run(program, count, spin, sync, ith, nth):
        for i in range(count):
            store_i64(program + 8 * (i * RECORD + CLAIM), 0)
        if nth > 1:
            atomic_store(sync + 8 * PROGRAM, program)
            atomic_store(sync + 8 * COUNT, count)
            atomic_add(sync + 8 * GENERATION, 1)
        run_records(program, count, sync, ith, nth, spin)
        if nth > 1:
            barrier(sync, nth, spin)

    return run


def work():
    """Another thread: wait at most `patience` pauses for a program, take part in it, wait again; return when none came.

    `seen` is the address of this thread's count of generations.
    """
    atomic_load, pause = simd.atomic_load, simd.pause
    load_i64, store_i64 = simd.load_i64, simd.store_i64
    barrier, run_records = _parts()

    def work(sync, seen, patience, spin, ith, nth):
        done = load_i64(seen)
        waited = 0
        while waited < patience:
            if atomic_load(sync + 8 * GENERATION) == done:
                waited += 1
                pause()
                continue
            done += 1
            run_records(atomic_load(sync + 8 * PROGRAM), atomic_load(sync + 8 * COUNT), sync, ith, nth, spin)
            barrier(sync, nth, spin)
            store_i64(seen, done)
            waited = 0

    return work
