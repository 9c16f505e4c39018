"""Pages of a mapped file that cannot be read: the file has become shorter, or its disk fails.

The system sends SIGBUS to the thread that reads such a page, which ends the process. Here (Linux) a handler in machine
code puts zeros in the place of the mapping and notes it; the thread goes on, and Python raises an error when the step
has ended. A SIGBUS that comes from elsewhere finds what was there before.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref

import numpy as np

from .. import simd
from ..compiler import jit

POSSIBLE = sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64")
KERNELS = (jit.Kernel("run.faults.handler"),) if POSSIBLE else ()
SIGBUS, SA_SIGINFO = 7, 4
SI_ADDR = 16  # offset in siginfo_t of the address that was read
MOST = 1024  # mappings that are watched at once
# Words of a row of the table. Row 0 has only the first: the address of what SIGBUS did before us. A row whose END is 0
# is free.
START, END, LOST, ROW = 0, 1, 2, 4
SET = -1  # called so, the handler is told where the table is

_table = np.zeros((MOST + 1, ROW), np.int64)
_free = list(range(MOST, 0, -1))
_old = None  # the struct sigaction from before


class _Action(ctypes.Structure):
    """struct sigaction of the C libraries of Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def handler():
    """A handler of SIGBUS. By the ABI of kernels: the number of the signal, its siginfo_t, where the thread was; or,
    from Python: nothing, the address of the table, SET."""
    load_i64, store_i64, own_word = simd.load_i64, simd.store_i64, simd.own_word
    map_zeros, set_action = simd.map_zeros, simd.set_action

    def handler(ith, nth):
        word = own_word()
        if nth == SET:
            store_i64(word, ith)
        else:
            table, at, known = load_i64(word), load_i64(ith + SI_ADDR), 0
            for i in range(1, MOST + 1):
                row = table + 8 * ROW * i
                start, end = load_i64(row + 8 * START), load_i64(row + 8 * END)
                if start <= at and at < end:
                    store_i64(row + 8 * LOST, 1)
                    if map_zeros(start, end - start) == start:
                        known = 1
            if known == 0:  # the same access, which is repeated now, finds what was there before
                set_action(SIGBUS, load_i64(table))

    return handler


def watch(mapped, address: int, n_bytes: int) -> memoryview:
    """Watch a mapping of whole pages, from its address on, as long as the object `mapped` lives: the words of its row,
    of which LOST is not 0 once a page could not be read."""
    if not POSSIBLE or not _free:
        return memoryview(np.zeros(ROW, np.int64))
    i = _free.pop()
    row = _table[i]
    row[:] = address, 0, 0, 0
    row[END] = address + -(-n_bytes // os.sysconf("SC_PAGESIZE")) * os.sysconf("SC_PAGESIZE")
    weakref.finalize(mapped, _forget, i).atexit = False
    return memoryview(row)


def _forget(i: int) -> None:
    _table[i, END] = 0
    _free.append(i)


def install() -> None:
    """From now on mappings are watched. A second call does nothing."""
    global _old
    if not POSSIBLE or _old is not None:
        return
    address = jit.load(KERNELS)[KERNELS[0]]
    jit.function(address)(0, _table.ctypes.data, SET)
    new, old = _Action(handler=address, flags=SA_SIGINFO), _Action()
    _table[0, 0] = ctypes.addressof(old)
    if ctypes.CDLL(None).sigaction(SIGBUS, ctypes.byref(new), ctypes.byref(old)) == 0:
        _old = old
