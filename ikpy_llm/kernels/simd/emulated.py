"""The instructions that x86.py, arm.py and dots.py name, in LLVM IR for any CPU, bit for bit as the manuals of Intel
and Arm define them. With IKPY_EMULATE the kernels of a target are compiled with these for the CPU that is here: slow,
but they run where the target does not.
"""

from __future__ import annotations

import functools

from llvmlite import ir

from .core import EMULATED, I16, I32, shuffle


def _define(*names: str):
    """Register `body(builder, *values)` for these intrinsics."""

    def register(body):
        EMULATED.update(dict.fromkeys(names, body))
        return body

    return register


def _of(vector, element):
    """The type of a vector with as many elements of another type."""
    return ir.VectorType(element, vector.type.count)


def _filled(vt, value: int):
    return ir.Constant(vt, [value] * vt.count)


def _field(b, words, width: int, i: int, unsigned: bool):
    """Field i of `width` bits of 32-bit words, widened."""
    top, down = _filled(words.type, 32 - width * (i + 1)), _filled(words.type, 32 - width)
    return (b.lshr if unsigned else b.ashr)(b.shl(words, top), down)


def _dot(width: int, unsigned: bool, b, acc, x, y):
    """acc += the sum of the products of each 32 bits of x and y, without saturation; unsigned: x is."""
    x, y = b.bitcast(x, acc.type), b.bitcast(y, acc.type)
    for i in range(32 // width):
        acc = b.add(acc, b.mul(_field(b, x, width, i, unsigned), _field(b, y, width, i, False)))
    return acc


_define("llvm.x86.avx512.vpdpbusd.256", "llvm.x86.avx512.vpdpbusd.512", "llvm.aarch64.neon.usdot.v4i32.v16i8")(
    functools.partial(_dot, 8, True)
)
_define("llvm.x86.avx512.vpdpwssd.512")(functools.partial(_dot, 16, False))
_define("llvm.aarch64.neon.sdot.v4i32.v16i8")(functools.partial(_dot, 8, False))


@_define("llvm.x86.avx2.pmadd.wd")
def _(b, x, y):
    """Sums of two products of int16."""
    return _dot(16, False, b, ir.Constant(ir.VectorType(I32, x.type.count // 2), None), x, y)


@_define("llvm.x86.avx2.pmadd.ub.sw")
def _(b, u, s):
    """Sums of two products u8 x s8, saturated to int16."""
    wide = _of(u, I32)
    products = b.mul(b.zext(u, wide), b.sext(s, wide))
    sums = b.add(*[shuffle(b, products, products, range(i, u.type.count, 2)) for i in range(2)])
    for limit, beyond in (32767, ">"), (-32768, "<"):
        bound = _filled(sums.type, limit)
        sums = b.select(b.icmp_signed(beyond, sums, bound), bound, sums)
    return b.trunc(sums, _of(sums, I16))


@_define("llvm.x86.avx2.psign.b")
def _(b, x, y):
    """x, -x or 0 as y is above, below or 0; -(-128) is -128."""
    zero = ir.Constant(x.type, None)
    signed = b.select(b.icmp_signed("<", y, zero), b.sub(zero, x), x)
    return b.select(b.icmp_unsigned("==", y, zero), zero, signed)


def _sixteen(b, table, index):
    """table[index & 15] of 16 bytes each: LLVM knows this form, and takes the byte shuffle of the CPU."""
    index = b.and_(index, _filled(index.type, 15))
    out = ir.Constant(index.type, ir.Undefined)
    for k in range(16):
        byte = b.extract_element(table, b.zext(b.extract_element(index, I32(k)), I32))
        out = b.insert_element(out, byte, I32(k))
    return out


def _joined(b, parts: list):
    """Vectors of a power of two, one after the other."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [shuffle(b, x, y, range(2 * x.type.count)) for x, y in pairs]
    return parts[0]


def _split(b, v) -> list:
    return [shuffle(b, v, v, range(i, i + 16)) for i in range(0, v.type.count, 16)]


@_define("llvm.x86.ssse3.pshuf.b.128", "llvm.x86.avx2.pshuf.b", "llvm.x86.avx512.pshuf.b.512")
def _(b, table, index):
    """Within each 16 bytes: table[index & 15], or 0 where the index is negative."""
    zero = ir.Constant(index.type, None)
    found = _joined(b, [_sixteen(b, *pair) for pair in zip(_split(b, table), _split(b, index), strict=True)])
    return b.select(b.icmp_signed("<", index, zero), zero, found)


def _chosen(b, tables: list, index):
    """tables[index >> 4][index & 15], or 0 beyond the tables."""
    out = ir.Constant(index.type, None)
    which = b.lshr(index, _filled(index.type, 4))
    for i, table in enumerate(tables):
        here = b.icmp_unsigned("==", which, _filled(index.type, i))
        out = b.select(here, _joined(b, [_sixteen(b, table, part) for part in _split(b, index)]), out)
    return out


@_define("llvm.x86.avx512.permvar.qi.512")
def _(b, table, index):
    """table[index & 63] of 64 bytes."""
    return _chosen(b, _split(b, table), b.and_(index, _filled(index.type, 63)))


@_define(*[f"llvm.aarch64.neon.tbl{n}.v16i8" for n in range(1, 5)])
def _(b, *values):
    """The byte of the tables that the index counts to, or 0 beyond them."""
    return _chosen(b, list(values[:-1]), values[-1])


@_define("llvm.x86.sse2.pause", "llvm.aarch64.hint")
def _(b, *values):
    """A hint: nothing."""
