"""Native bodies for x86-64: AVX-512 (VNNI, VBMI), AVX-VNNI, AVX2."""

from __future__ import annotations

from llvmlite import ir

from . import ops, threads
from .core import I1, Vec, call, constant, shuffle


def _lanes(n):
    return lambda acc, u, s: u.lanes == n


@ops.dot4.op.native("avx2", when=_lanes(32))
def _(b, sig, acc, u, s):
    """Even and odd bytes as 16-bit pairs: exact, where vpmaddubsw would saturate for u > 129."""
    w16, out = Vec("i16", 16), acc.type
    u16, s16, eight = b.bitcast(u, w16.ir), b.bitcast(s, w16.ir), constant(w16, 8)
    even = call(b, "llvm.x86.avx2.pmadd.wd", out, b.and_(u16, constant(w16, 255)), b.ashr(b.shl(s16, eight), eight))
    odd = call(b, "llvm.x86.avx2.pmadd.wd", out, b.lshr(u16, eight), b.ashr(s16, eight))
    return b.add(acc, b.add(even, odd))


@ops.dot4_small.op.native("avx2", when=_lanes(32))
def _(b, sig, acc, u, s):
    """u <= 127: pairs stay below 2 * 127 * 127 = 32258, vpmaddubsw does not saturate (s is never -128)."""
    w16 = Vec("i16", 16)
    pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", w16.ir, u, s)
    return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, pairs, constant(w16, 1)))


@ops.dot4_centred.op.native("avx2", when=_lanes(32))
def _(b, sig, acc, u, s):
    """|u - 128| <= 128: pairs stay below 2 * 128 * 127 = 32512 (s is never -128)."""
    w16, signed = Vec("i16", 16), b.xor(u, constant(sig.args[1], 128))
    s = call(b, "llvm.x86.avx2.psign.b", u.type, s, signed)
    pairs = call(
        b, "llvm.x86.avx2.pmadd.ub.sw", w16.ir, call(b, "llvm.abs.v32i8", u.type, signed, ir.Constant(I1, 0)), s
    )
    return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, pairs, constant(w16, 1)))


for _op in (ops.dot4, ops.dot4_small):

    @_op.op.native("avxvnni", when=_lanes(32))
    @_op.op.native("avx512vnni", "avx512vl", when=_lanes(32))
    def _(b, sig, acc, u, s):
        return call(b, "llvm.x86.avx512.vpdpbusd.256", acc.type, acc, u, s)

    @_op.op.native("avx512vnni", when=_lanes(64))
    def _(b, sig, acc, u, s):
        return call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, acc, u, s)


@ops.dot2.op.native("avx2", when=lambda acc, x, y: x.lanes == 16)
def _(b, sig, acc, x, y):
    return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, x, y))


@ops.dot2.op.native("avx512vnni", when=lambda acc, x, y: x.lanes == 32)
def _(b, sig, acc, x, y):
    return call(b, "llvm.x86.avx512.vpdpwssd.512", acc.type, acc, x, y)


_SHUFFLES = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}


def lookup_by_signs(b, table, low, signs: list):
    """Entries of a u8 table of 16 << len(signs) by the low 4 bits of `low` (whose bit 7 is 0) and, highest bit first,
    by the signs of bytes: byte shuffles of 16 entries each, joined by the signs."""
    n = low.type.count
    if not signs:
        entries = shuffle(b, table, table, [*range(16)] * (n // 16))
        return call(b, _SHUFFLES[n], low.type, entries, low)
    half, below = table.type.count // 2, ir.Constant(low.type, None)
    parts = (shuffle(b, table, table, range(i * half, (i + 1) * half)) for i in (0, 1))
    unset, is_set = (lookup_by_signs(b, part, low, signs[1:]) for part in parts)
    return b.select(b.icmp_signed("<", signs[0], below), is_set, unset)


def shifted_up(b, v, n: int):
    """Bytes whose upper 8 - n bits are the lower ones of v."""
    w16 = Vec("i16", v.type.count // 2)
    return b.bitcast(b.shl(b.bitcast(v, w16.ir), constant(w16, n)), v.type) if n else v


@ops.lookup.op.native("avx2", when=lambda t, i: i.lanes in (16, 32))
@ops.lookup.op.native("avx512bw", when=lambda t, i: i.lanes == 64)
def _(b, sig, table, index):
    above = {16: (), 32: (3,), 64: (2, 3)}[sig.args[0].lanes]
    return lookup_by_signs(b, table, index, [shifted_up(b, index, n) for n in above])


@ops.lookup.op.native("avx512vbmi", when=lambda t, i: t.lanes in (32, 64) and i.lanes == 64)
def _(b, sig, table, index):
    whole = shuffle(b, table, table, [*range(sig.args[0].lanes)] * (64 // sig.args[0].lanes))
    return call(b, "llvm.x86.avx512.permvar.qi.512", index.type, whole, index)


@threads.pause.op.native("avx2")  # every x86-64 has it, but a body may only rely on what its target lists
def _(b, sig):
    call(b, "llvm.x86.sse2.pause", ir.VoidType())
