"""What threads need to meet: atomic words, waiting, calling a kernel by its address."""

from __future__ import annotations

import os

from llvmlite import ir
from numba import types

from .core import I8, I32, I64, TARGET, call, op
from .memory import _address, i64


@op(lambda addr, v: i64)
def atomic_add(b, sig, addr, v):
    """Add to the int64 at address; returns the old value (acquire-release)."""
    return b.atomic_rmw("add", _address(b, addr, I64), v, "acq_rel")


@op(lambda addr, expected, new: i64)
def atomic_swap_if(b, sig, addr, expected, new):
    """Compare and swap the int64 at address; returns the old value (sequentially consistent)."""
    return b.extract_value(b.cmpxchg(_address(b, addr, I64), expected, new, "seq_cst", "seq_cst"), 0)


@op(lambda addr: i64)
def atomic_load(b, sig, addr):
    """The int64 at address (sequentially consistent)."""
    return b.load_atomic(_address(b, addr, I64), "seq_cst", 8)


@op(lambda addr, v: types.void)
def atomic_store(b, sig, addr, v):
    """Store the int64 v at address (sequentially consistent)."""
    b.store_atomic(v, _address(b, addr, I64), "seq_cst", 8)


@op(lambda: types.void)
def pause(b, sig):
    """Tell the core that we are waiting; portable body: nothing."""


WINDOWS = "windows" in TARGET.triple  # its C library has neither of the next two functions


@op(lambda: types.void)
def sched_yield(b, sig):
    """Give the core to another thread (the C library's sched_yield, kernel32's SwitchToThread)."""
    call(b, "SwitchToThread" if WINDOWS else "sched_yield", I32)


if hasattr(os, "sched_setaffinity"):  # Linux

    @op(lambda: i64)
    def this_cpu(b, sig):
        """The number of the logical CPU this thread runs on now; takes no system call."""
        return b.sext(call(b, "sched_getcpu", I32), I64)

    @op(lambda addr, n_bytes: i64)
    def get_affinity(b, sig, addr, n_bytes):
        """Store the set of CPUs this thread may run on at address: bit i is CPU i; 0, or -1 where that fails."""
        return b.sext(call(b, "sched_getaffinity", I32, I32(0), n_bytes, _address(b, addr, I8)), I64)

    @op(lambda addr, n_bytes: i64)
    def set_affinity(b, sig, addr, n_bytes):
        """Let this thread run on the set of CPUs at address only; 0, or -1 where that fails."""
        return b.sext(call(b, "sched_setaffinity", I32, I32(0), n_bytes, _address(b, addr, I8)), I64)


CLOCK_MONOTONIC = 6 if "darwin" in TARGET.triple or "macos" in TARGET.triple else 1


@op(lambda addr: types.void)
def clock(b, sig, addr):
    """Store the time as int64 seconds, int64 nanoseconds (the C library's clock_gettime, monotonic; kernel32's
    QueryPerformanceCounter)."""
    at = b.inttoptr(addr, I64.as_pointer())
    if not WINDOWS:
        call(b, "clock_gettime", I32, I32(CLOCK_MONOTONIC), at)
        return
    rest = b.gep(at, [I64(1)])
    call(b, "QueryPerformanceFrequency", I32, rest)
    call(b, "QueryPerformanceCounter", I32, at)
    ticks, per_second = b.load(at), b.load(rest)
    b.store(b.udiv(ticks, per_second), at)
    b.store(b.udiv(b.mul(b.urem(ticks, per_second), I64(10**9)), per_second), rest)


@op(lambda fn, args, ith, nth: types.void)
def call_kernel(b, sig, fn, args, ith, nth):
    """Call the kernel at address fn."""
    fn_type = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    b.call(b.inttoptr(fn, fn_type.as_pointer()), [args, ith, nth])
