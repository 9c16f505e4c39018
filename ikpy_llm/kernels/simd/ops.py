"""The operations kernels are written in: each has one portable body here; faster bodies for an instruction set are in
x86.py and arm.py."""

from __future__ import annotations

from llvmlite import ir
from numba import types

from .core import (
    F32T,
    I1,
    I8,
    I16,
    I32,
    I64,
    SCALARS,
    Vec,
    broadcast,
    constant,
    float_fn,
    lane_type,
    op,
    shuffle,
    to_lane,
)
from .memory import *  # noqa: F403
from .memory import U8X16, U8X32, emit_load, f32, i64


# ---------------------------------------------------------------- making vectors
@op(lambda vt: vt)
def zeros(b, sig, vt):
    """zeros(VT)."""
    return ir.Constant(sig.return_type.ir, None)


@op(lambda vt, x: vt if isinstance(x, (types.Integer, types.Float)) else None)
def splat(b, sig, vt, x):
    """splat(VT, scalar): the scalar in every lane."""
    return broadcast(b, to_lane(b, sig.return_type, x, sig.args[1]), sig.return_type)


@op(lambda vt, addr: vt)
def splat_load(b, sig, vt, addr):
    """splat_load(VT, address): the element at address in every lane."""
    return broadcast(b, emit_load(b, addr, sig.return_type.ir.element), sig.return_type)


@op(lambda vt, addr: vt)
def splat4(b, sig, vt, addr):
    """splat4(VT, address): the 4 bytes at address repeated."""
    return b.bitcast(broadcast(b, emit_load(b, addr, I32), Vec("i32", sig.return_type.lanes // 4)), sig.return_type.ir)


@op(lambda vt: vt)
def iota(b, sig, vt):
    """iota(VT): 0, 1, 2, ..."""
    return constant(sig.return_type, range(sig.return_type.lanes))


# ---------------------------------------------------------------- conversions
@op(lambda vt, v: vt)
def cast(b, sig, vt, v):
    """cast(VT, v): convert each value (round to nearest even to f16, toward zero from float to integer)."""
    have, want = sig.args[1], sig.return_type
    if have.is_float and want.is_float:
        return (
            v
            if have.elem == want.elem
            else (b.fpext if int(have.elem[1:]) < int(want.elem[1:]) else b.fptrunc)(v, want.ir)
        )
    if have.is_float:
        return (b.fptoui if want.is_unsigned else b.fptosi)(v, want.ir)
    if want.is_float:
        return (b.uitofp if have.is_unsigned else b.sitofp)(v, want.ir)
    a, w = have.ir.element.width, want.ir.element.width
    return v if a == w else b.trunc(v, want.ir) if a > w else (b.zext if have.is_unsigned else b.sext)(v, want.ir)


@op(lambda vt, v: vt)
def bits(b, sig, vt, v):
    """bits(VT, v): the same bits seen as VT."""
    return b.bitcast(v, sig.return_type.ir)


@op(lambda x: i64)
def f32_bits(b, sig, x):
    """Bits of a float32 scalar, as int64."""
    return b.zext(b.bitcast(x, I32), I64)


@op(lambda x: f32)
def f32_from_bits(b, sig, x):
    """The float32 whose bits are the low 32 of x."""
    return b.bitcast(b.trunc(x, I32) if x.type.width > 32 else x, F32T)


@op(lambda v: v.of("f32"))
def bf16_to_f32(b, sig, v):
    """u16 lanes holding bf16 -> f32."""
    wide = Vec("u32", sig.args[0].lanes)
    return b.bitcast(b.shl(b.zext(v, wide.ir), constant(wide, 16)), sig.return_type.ir)


# ---------------------------------------------------------------- arithmetic
@op(lambda x, y, z: z if lane_type(x) == lane_type(y) == lane_type(z) else None)
def fma(b, sig, x, y, z):
    """x * y + z, rounded once."""
    return float_fn(b, "fma", x, y, z)


@op(lambda v: v)
def rint(b, sig, v):
    """Round half to even."""
    return float_fn(b, "rint", v)


@op(lambda v: v)
def floor(b, sig, v):
    return float_fn(b, "floor", v)


@op(lambda v: v)
def sqrt(b, sig, v):
    return float_fn(b, "sqrt", v)


@op(lambda v: v)
def absolute(b, sig, v):
    return float_fn(b, "fabs", v)


def _minmax(b, vt, x, y, less):
    if vt.is_float:
        cond = b.fcmp_ordered("<" if less else ">", x, y)
    else:
        cond = (b.icmp_unsigned if vt.is_unsigned else b.icmp_signed)("<" if less else ">", x, y)
    return b.select(cond, x, y)


@op(lambda x, y: x)
def minimum(b, sig, x, y):
    """x < y ? x : y per lane (y when either is NaN)."""
    return _minmax(b, sig.args[0], x, y, True)


@op(lambda x, y: x)
def maximum(b, sig, x, y):
    """x > y ? x : y per lane (y when either is NaN)."""
    return _minmax(b, sig.args[0], x, y, False)


@op(lambda m, x, y: x)
def select(b, sig, m, x, y):
    """m ? x : y per lane; m comes from a comparison."""
    return b.select(m, x, y)


@op(lambda v, shift, width: v)
def field(b, sig, v, shift, width):
    """field(v, shift, width): the `width` bits from `shift` of every byte of a u8 vector; shift and width may be
    run-time values."""
    wide = Vec("u32", sig.args[0].lanes // 4)
    n = b.trunc(shift, I32) if shift.type.width > 32 else shift
    shifted = b.lshr(b.bitcast(v, wide.ir), broadcast(b, n, wide))
    ones = b.sub(b.shl(I64(1), width), I64(1)) if width.type.width == 64 else b.sub(b.shl(I32(1), width), I32(1))
    return b.and_(b.bitcast(shifted, v.type), broadcast(b, b.trunc(ones, I8), sig.args[0]))


@op(lambda acc, u, s: acc)
def dot4(b, sig, acc, u, s):
    """acc.i32[j] += sum over k < 4 of u.u8[4j+k] * s.i8[4j+k], exact for all u8 and s8."""
    n = sig.args[1].lanes
    w = ir.VectorType(I32, n)
    p = b.mul(b.zext(u, w), b.sext(s, w))
    for k in range(4):
        acc = b.add(acc, shuffle(b, p, p, range(k, n, 4)))
    return acc


@op(lambda acc, u, s: acc)
def dot4_small(b, sig, acc, u, s):
    """dot4 for u <= 127: instruction sets without an exact u8 x s8 product have a faster way then."""
    return dot4.op.pick(*sig.args)(b, sig, acc, u, s)


@op(lambda acc, u, s: acc)
def dot4_centred(b, sig, acc, u, s):
    """acc.i32[j] += sum over k < 4 of (u.u8[4j+k] - 128) * s.i8[4j+k]."""
    n = sig.args[1].lanes
    w = ir.VectorType(I32, n)
    p = b.mul(b.sext(b.xor(u, constant(sig.args[1], 128)), w), b.sext(s, w))
    for k in range(4):
        acc = b.add(acc, shuffle(b, p, p, range(k, n, 4)))
    return acc


@op(lambda acc, x, y: acc)
def dot2(b, sig, acc, x, y):
    """acc.i32[j] += x.i16[2j] * y.i16[2j] + x.i16[2j+1] * y.i16[2j+1]."""
    n = sig.args[1].lanes
    w = ir.VectorType(I32, n)
    p = b.mul(b.sext(x, w), b.sext(y, w))
    for k in range(2):
        acc = b.add(acc, shuffle(b, p, p, range(k, n, 2)))
    return acc


# ---------------------------------------------------------------- across lanes
def _reduce(b, v, n, combine):
    while n > 1:
        n //= 2
        v = combine(shuffle(b, v, v, range(n)), shuffle(b, v, v, range(n, 2 * n)))
    return b.extract_element(v, I32(0))


@op(lambda v: SCALARS[v.elem])
def reduce_add(b, sig, v):
    """Sum of all lanes, by halves."""
    return _reduce(b, v, sig.args[0].lanes, b.fadd if sig.args[0].is_float else b.add)


@op(lambda v: SCALARS[v.elem])
def reduce_max(b, sig, v):
    """Largest lane."""
    return _reduce(b, v, sig.args[0].lanes, lambda x, y: _minmax(b, sig.args[0], x, y, False))


@op(lambda x, y: x.of(x.elem, 2 * x.lanes))
def join(b, sig, x, y):
    """The lanes of x, then those of y."""
    return shuffle(b, x, y, range(2 * sig.args[0].lanes))


@op(lambda v: v.of(v.elem, v.lanes // 2))
def low(b, sig, v):
    """First half of the lanes."""
    return shuffle(b, v, v, range(sig.args[0].lanes // 2))


@op(lambda v: v.of(v.elem, v.lanes // 2))
def high(b, sig, v):
    """Second half of the lanes."""
    return shuffle(b, v, v, range(sig.args[0].lanes // 2, sig.args[0].lanes))


@op(lambda v, w: v)
def interleave_low(b, sig, v, w):
    """v0 w0 v1 w1 ... from the first halves."""
    n = sig.args[0].lanes
    return shuffle(b, v, w, [i // 2 + (n if i % 2 else 0) for i in range(n)])


@op(lambda v, w: v)
def interleave_high(b, sig, v, w):
    """v w pairs from the second halves."""
    n = sig.args[0].lanes
    return shuffle(b, v, w, [n // 2 + i // 2 + (n if i % 2 else 0) for i in range(n)])


@op(lambda table, index: index)
def lookup(b, sig, table, index):
    """out[k] = table[index[k]] for a u8 table of 16, 32 or 64 entries and u8 indices below that."""
    out = ir.Constant(index.type, ir.Undefined)
    for k in range(sig.args[1].lanes):
        out = b.insert_element(out, b.extract_element(table, b.zext(b.extract_element(index, I32(k)), I32)), I32(k))
    return out


@op(lambda mask: U8X32)
def bits32(b, sig, mask):
    """The 32 bits of an integer as 32 bytes of 0 or 1."""
    return b.zext(b.bitcast(b.trunc(mask, I32), ir.VectorType(I1, 32)), U8X32.ir)


# ---------------------------------------------------------------- constants and scratch, made at build time
def table_size(values) -> int:
    """Entries of the table `lookup` takes for so many values."""
    return next(n for n in (16, 32, 64) if len(values) <= n)


def byte_vector(values):
    """A function without arguments that returns the bytes `values` as a constant of 16, 32 or 64 (padded with 0)."""
    vec = Vec("u8", table_size(values))
    padded = [*values, *[0] * (vec.lanes - len(values))]

    @op(lambda: vec)
    def table(b, sig):
        return constant(vec, padded)

    return table


def stack(n_bytes: int):
    """A function without arguments that returns the address of n_bytes of this call's stack, aligned to 64."""

    @op(lambda: i64)
    def buffer(b, sig):
        with b.goto_entry_block():
            slot = b.alloca(ir.ArrayType(I8, n_bytes))
            slot.align = 64
            return b.ptrtoint(slot, I64)

    return buffer


def byte_table(data: bytes):
    """A function without arguments that returns the address of these bytes, kept beside the machine code."""

    @op(lambda: i64)
    def table(b, sig):
        value = ir.Constant(ir.ArrayType(I8, len(data)), bytearray(data))
        held = ir.GlobalVariable(b.module, value.type, b.module.get_unique_name("byte_table"))
        held.linkage, held.global_constant, held.initializer = "internal", True, value
        return b.ptrtoint(held, I64)

    return table


@op(lambda x, y: U8X16)
def bytes16(b, sig, x, y):
    """Two int64 as 16 bytes, x first."""
    pair = ir.VectorType(I64, 2)
    v = b.insert_element(ir.Constant(pair, ir.Undefined), x, I32(0))
    return b.bitcast(b.insert_element(v, y, I32(1)), U8X16.ir)


@op(lambda x: f32)
def f16_from_bits(b, sig, x):
    """The half float whose bits are the low 16 of x, as float32."""
    return b.fpext(b.bitcast(b.trunc(x, I16), ir.HalfType()), F32T)
