"""What threads need to meet: atomic words, waiting, calling a kernel by its address."""

from __future__ import annotations

import os

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .core import I8, I32, I64, TARGET, call, op
from .memory import _address, i64


@op(lambda addr, v: i64)
def atomic_add(b, sig, addr, v):
    """Add to the int64 at address; returns the old value (sequentially consistent)."""
    return b.atomic_rmw("add", _address(b, addr, I64), v, "seq_cst")


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
    _yield(b)


def _yield(b):
    call(b, "SwitchToThread" if WINDOWS else "sched_yield", I32)


# The system call futex(2) of Linux, by architecture; elsewhere a thread that waits offers its core again and again.
FUTEX = {"x86_64": 202, "aarch64": 98}.get(TARGET.triple.partition("-")[0]) if "linux" in TARGET.triple else None
FUTEX_WAIT, FUTEX_WAKE = 128, 129  # of this process only


@op(lambda addr, expected, ns: types.void)
def wait_on(b, sig, addr, expected, ns):
    """Sleep until `wake_all(addr)`, but only while the int64 at address is `expected`, and for ns nanoseconds at most
    (0: no limit). May return early, so that the caller looks again; the low half of the int64 is what is compared."""
    if FUTEX is None:
        _yield(b)
        return
    limit = cgutils.alloca_once(b, ir.ArrayType(I64, 2))
    for i, part in enumerate((b.udiv(ns, I64(10**9)), b.urem(ns, I64(10**9)))):
        b.store(part, b.gep(limit, [I32(0), I32(i)]))
    until = b.select(b.icmp_unsigned("==", ns, I64(0)), I64(0), b.ptrtoint(limit, I64))
    _futex(b, addr, I64(FUTEX_WAIT), b.and_(expected, I64(0xFFFFFFFF)), until)


@op(lambda addr: types.void)
def wake_all(b, sig, addr):
    """Wake all threads that sleep in wait_on(addr)."""
    if FUTEX is not None:
        _futex(b, addr, I64(FUTEX_WAKE), I64(0x7FFFFFFF), I64(0))


def _futex(b, addr, operation, value, until):
    fn_type = ir.FunctionType(I64, [I64], var_arg=True)
    fn = cgutils.get_or_insert_function(b.module, fn_type, "syscall")
    b.call(fn, [I64(FUTEX), addr, operation, value, until, I64(0), I64(0)])


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
