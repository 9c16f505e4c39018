"""Native bodies for aarch64: dotprod and i8mm."""

from __future__ import annotations

from llvmlite import ir

from . import ops, threads
from .core import I32, call, constant, shuffle


def _sixteen(acc, u, s):
    return u.lanes == 16


def _sdot(b, acc, x, y):
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, acc, x, y)


@ops.dot4.op.native("dotprod", when=_sixteen)
def _(b, sig, acc, u, s):
    """u = (u - 128) + 128: one signed product and 128 times the sum of s."""
    eight_bits = sig.args[1]
    total = _sdot(b, ir.Constant(acc.type, None), constant(eight_bits, 1), s)
    acc = _sdot(b, acc, b.xor(u, constant(eight_bits, 128)), s)
    return b.add(acc, b.shl(total, constant(sig.args[0], 7)))


@ops.dot4_small.op.native("dotprod", when=_sixteen)
def _(b, sig, acc, u, s):
    return _sdot(b, acc, u, s)


@ops.dot4.op.native("i8mm", when=_sixteen)
@ops.dot4_small.op.native("i8mm", when=_sixteen)
def _(b, sig, acc, u, s):
    return call(b, "llvm.aarch64.neon.usdot.v4i32.v16i8", acc.type, acc, u, s)


@ops.lookup.op.native("neon", when=lambda t, i: i.lanes == 16)
def _(b, sig, table, index):
    n = sig.args[0].lanes // 16
    parts = [shuffle(b, table, table, range(16 * i, 16 * i + 16)) for i in range(n)]
    return call(b, f"llvm.aarch64.neon.tbl{n}.v16i8", index.type, *parts, index)


@threads.pause.op.native("neon")
def _(b, sig):
    call(b, "llvm.aarch64.hint", ir.VoidType(), I32(1))
