"""Machine code that runs programs: `run` on the caller's thread, `work` on every other; compiled like any kernel.

Program: records of RECORD words: [kernel address, flags, claim counter, arguments...]. Flag BARRIER: all threads meet
after the record. Sync block, int64 words on cache lines of their own:
    GENERATION        goes up by one when a program is published
    ARRIVED, PHASE    the barrier: threads that came, barriers passed
    PROGRAM, COUNT    address of the records, how many to run
    TAKE_PART         how many threads do
After GENERATION and PHASE, on the same line, stands how many threads sleep until it changes. `spin` counts pauses
before a waiting thread goes to sleep. A thread takes part in a program if its FROM is not above the generation; its
number among those who do is its RANK. Both change only between programs.
"""

from __future__ import annotations

import os

from .. import simd

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
GENERATION, ARRIVED, PHASE = 0, _LINE, 2 * _LINE
PROGRAM, COUNT, TAKE_PART = 3 * _LINE, 3 * _LINE + 1, 3 * _LINE + 2
SYNC = 4 * _LINE  # words of the sync block
SEEN, FROM, RANK = 0, 1, 2  # a thread's own words; SEEN: the last generation it has done or let pass
OWN_WORDS = _LINE
NEVER = 1 << 62  # FROM of a thread that rests


def _binding(can_bind: bool):
    """(stay, hold, leave) as inlined functions over the address of a Home block, 0 for a thread that is not kept on a
    core.

    stay: bind this thread to its core if it runs on another one; hold: bind it; leave: let it run where it could
    before.
    """
    inline = simd.inline
    if not can_bind:
        return (inline(lambda home: 0),) * 3
    get_affinity, set_affinity, this_cpu = simd.get_affinity, simd.set_affinity, simd.this_cpu
    load_i64, store_i64 = simd.load_i64, simd.store_i64

    @inline
    def hold(home):
        free = home != 0 and load_i64(home + BOUND) == 0
        if free and get_affinity(home + BEFORE, CPU_SET) == 0 and set_affinity(home + OWN, CPU_SET) == 0:
            store_i64(home + BOUND, 1)
        return 0

    @inline
    def stay(home):
        if home != 0 and this_cpu() != load_i64(home + CORE):
            hold(home)
        return 0

    @inline
    def leave(home):
        if home and load_i64(home + BOUND):
            set_affinity(home + BEFORE, CPU_SET)
            store_i64(home + BOUND, 0)
        return 0

    return stay, hold, leave


def _words():
    """(change, sleep) as inlined functions over a word of the sync block that threads wait for.

    change: add one and wake who sleeps; sleep: until the word is not `before` any more, for ns nanoseconds at most (0:
    no limit), or shorter. One of the two sees what the other did first: each writes a word and then reads the other's.
    """
    inline, atomic_load, atomic_add, wait_on, wake_all = (
        simd.inline, simd.atomic_load, simd.atomic_add, simd.wait_on, simd.wake_all
    )  # fmt: skip

    @inline
    def change(word):
        atomic_add(word, 1)
        if atomic_load(word + 8) > 0:
            wake_all(word)

    @inline
    def sleep(word, before, ns):
        atomic_add(word + 8, 1)
        wait_on(word, before, ns)
        atomic_add(word + 8, -1)

    return change, sleep


def _parts(hold):
    """(change, sleep, barrier, run_records) as inlined functions; hold(home): see _binding."""
    inline, atomic_load, atomic_store, atomic_add = simd.inline, simd.atomic_load, simd.atomic_store, simd.atomic_add
    pause, call_kernel, load_i64 = simd.pause, simd.call_kernel, simd.load_i64
    arrived, phase = 8 * ARRIVED, 8 * PHASE
    change, sleep = _words()

    @inline
    def barrier(sync, nth, spin, home):
        before = atomic_load(sync + phase)  # it cannot change until this thread arrives
        if atomic_add(sync + arrived, 1) == nth - 1:
            atomic_store(sync + arrived, 0)
            change(sync + phase)
        else:
            n = 0
            while atomic_load(sync + phase) == before:
                if n < spin:
                    n += 1
                    pause()
                else:
                    hold(home)  # it would be woken on the core of the thread it waits for
                    sleep(sync + phase, before, 0)

    @inline
    def run_records(program, count, sync, ith, nth, spin, home):
        record = program
        for _ in range(count):
            call_kernel(load_i64(record), record + 8 * ARGS, ith, nth)
            if load_i64(record + 8 * FLAGS) & BARRIER and nth > 1:
                barrier(sync, nth, spin, home)
            record += 8 * RECORD

    return change, sleep, barrier, run_records


def run(can_bind: bool):
    """Thread 0: publish the program, take part in it, return when all threads have finished it.

    It is kept on one core meanwhile, where `home` names one: bound only once it is on another or has to sleep, because
    system calls for every token cost a sixth of the speed where another process wants the core. Python never sees it
    bound: what the caller starts, a process or a thread, would inherit that and keep it.
    """
    atomic_store, store_i64 = simd.atomic_store, simd.store_i64
    stay, hold, leave = _binding(can_bind)
    change, _, barrier, run_records = _parts(hold)

    def run(program, count, spin, sync, home, ith, nth):
        stay(home)
        for i in range(count):
            store_i64(program + 8 * (i * RECORD + CLAIM), 0)
        if nth > 1:
            atomic_store(sync + 8 * PROGRAM, program)
            atomic_store(sync + 8 * COUNT, count)
            atomic_store(sync + 8 * TAKE_PART, nth)
            change(sync + 8 * GENERATION)
        run_records(program, count, sync, ith, nth, spin, home)
        if nth > 1:
            barrier(sync, nth, spin, home)
        leave(home)

    return run


def work():
    """Another thread: take part in programs as they come; return when none came for `patience` pauses and then,
    asleep, `idle` nanoseconds, or when one came without this thread.

    own: the address of the thread's own words.
    """
    atomic_load, pause = simd.atomic_load, simd.pause
    load_i64, store_i64 = simd.load_i64, simd.store_i64
    _, sleep, barrier, run_records = _parts(_binding(can_bind=False)[1])

    def work(sync, own, patience, idle, spin, ith, nth):
        done = load_i64(own + 8 * SEEN)
        while True:
            n = 0
            while n < patience and atomic_load(sync + 8 * GENERATION) == done:
                n += 1
                pause()
            if idle > 0 and atomic_load(sync + 8 * GENERATION) == done:
                sleep(sync + 8 * GENERATION, done, idle)
            generation = atomic_load(sync + 8 * GENERATION)
            if generation == done:
                return
            done = generation
            if atomic_load(own + 8 * FROM) > generation:
                store_i64(own + 8 * SEEN, done)
                return
            rank, n_part = load_i64(own + 8 * RANK), atomic_load(sync + 8 * TAKE_PART)
            program, count = atomic_load(sync + 8 * PROGRAM), atomic_load(sync + 8 * COUNT)
            run_records(program, count, sync, rank, n_part, spin, 0)
            barrier(sync, n_part, spin, 0)
            store_i64(own + 8 * SEEN, done)

    return work
