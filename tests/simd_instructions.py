"""Instructions by their LLVM names against NumPy, as the manuals of Intel and Arm define them: all of the architecture
if emulated, otherwise those this target has. simd_cases.py runs the checks."""

import functools

import numpy as np
from numba import types
from simd_harness import ELEMENTS, RNG, address_of, run

from ikpy_llm.kernels.simd import core, memory

ROOM = 64  # bytes per operand and result
EDGES = np.array([0x00, 0x01, 0x7F, 0x80, 0x81, 0xFF], np.uint8)  # 0, 1, 127, -128, -127, -1
U8, I8, I16, I32 = "u8", "i8", "i16", "i32"


def sums(products, n):
    """Of n neighbours, int64."""
    return products.reshape(len(products), -1, n).sum(2)


def dot(n):
    return lambda acc, x, y: acc + sums(x.astype(np.int64) * y, n)


def pairs_saturated(u, s):
    return np.clip(sums(u.astype(np.int64) * s, 2), -32768, 32767)


def shuffled(table, index):
    """In each 16 bytes on its own; bit 7 of an index gives 0."""
    parts = index.reshape(len(index), -1, 16)
    found = np.take_along_axis(table.reshape(parts.shape), (parts & 15).astype(int), 2)
    return np.where(parts > 127, 0, found).reshape(index.shape)


def looked_up(*values):
    *tables, index = values
    table = np.concatenate(tables, 1)
    found = np.take_along_axis(table, index.astype(int) % table.shape[1], 1)
    return np.where(index < table.shape[1], found, 0)


def permuted(table, index):
    return np.take_along_axis(table, (index & 63).astype(int), 1)


# name: (element and bytes of each operand, of the result, definition, features of a CPU that has it)
DOT4 = (I32, U8, I8), I32, dot(4)
INSTRUCTIONS = {
    "llvm.x86.avx512.vpdpbusd.256": (32, *DOT4, "avx512vnni avx512vl"),
    "llvm.x86.avx512.vpdpbusd.512": (64, *DOT4, "avx512vnni"),
    "llvm.x86.avx512.vpdpwssd.512": (64, (I32, I16, I16), I32, dot(2), "avx512vnni"),
    "llvm.x86.avx2.pmadd.wd": (32, (I16, I16), I32, lambda x, y: sums(x.astype(np.int64) * y, 2), "avx2"),
    "llvm.x86.avx2.pmadd.ub.sw": (32, (U8, I8), I16, pairs_saturated, "avx2"),
    "llvm.x86.avx2.psign.b": (32, (I8, I8), I8, lambda x, y: x * np.sign(y).astype(np.int64), "avx2"),
    "llvm.x86.ssse3.pshuf.b.128": (16, (U8, U8), U8, shuffled, "avx2"),
    "llvm.x86.avx2.pshuf.b": (32, (U8, U8), U8, shuffled, "avx2"),
    "llvm.x86.avx512.pshuf.b.512": (64, (U8, U8), U8, shuffled, "avx512bw"),
    "llvm.x86.avx512.permvar.qi.512": (64, (U8, U8), U8, permuted, "avx512vbmi"),
    "llvm.aarch64.neon.sdot.v4i32.v16i8": (16, (I32, I8, I8), I32, dot(4), "dotprod"),
    "llvm.aarch64.neon.usdot.v4i32.v16i8": (16, *DOT4, "i8mm"),
    **{f"llvm.aarch64.neon.tbl{n}.v16i8": (16, (U8,) * (n + 1), U8, looked_up, "neon") for n in range(1, 5)},
}
ARCHITECTURE = "aarch64" if core.TARGET.name == "neon" else "x86"
HINTS = {"llvm.x86.sse2.pause", "llvm.aarch64.hint"}


def vector(element, size):
    return core.Vec(element, size // np.dtype(ELEMENTS[element]).itemsize)


def _operands(n, size, elements):
    """uint8 [n][operand][ROOM] and views [n][lanes] of the operands: extreme bytes first, then random ones."""
    data = RNG.integers(0, 256, (n, len(elements), ROOM), np.uint8)
    data[: n // 4] = RNG.choice(EDGES, data[: n // 4].shape)
    steady = data[n // 4 : n // 2]
    steady[:] = RNG.choice(EDGES, (*steady.shape[:2], 1))  # one byte throughout: all sums at their limits
    return data, [np.ascontiguousarray(data[:, i, :size]).view(ELEMENTS[e]) for i, e in enumerate(elements)]


def check_instruction(name):
    size, elements, result, definition, _ = INSTRUCTIONS[name]
    vectors, out_type = [vector(e, size) for e in elements], vector(result, size)

    @core.op(lambda at, out: types.void)
    def instruction(b, sig, at, out):
        values = [memory.emit_load(b, b.add(at, at.type(i * ROOM)), v.ir) for i, v in enumerate(vectors)]
        memory.emit_store(b, core.call(b, name, out_type.ir, *values), out)

    step = ROOM * len(elements)

    def kernel(at, out, n, ith, nth):
        for i in range(n):
            instruction(at + i * step, out + i * ROOM)

    data, operands = _operands(800, size, elements)
    got = np.zeros((len(data), ROOM), np.uint8)
    run(address_of(name.replace(".", "_"), kernel), data, got, len(data))
    wanted = definition(*operands).astype(ELEMENTS[result])  # wraps
    np.testing.assert_array_equal(np.ascontiguousarray(got[:, :size]).view(wanted.dtype), wanted)


def check_emulated():
    assert set(core.EMULATED) == {*INSTRUCTIONS, *HINTS}


CHECKS = {"emulated instructions": check_emulated} | {
    name: functools.partial(check_instruction, name)
    for name, (*_, features) in INSTRUCTIONS.items()
    if core.TARGET.isa >= set(features.split()) or (core.TARGET.emulated and name.split(".")[1] == ARCHITECTURE)
}
