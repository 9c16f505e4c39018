"""Compiles and runs test kernels in this process: what tests of single SIMD operations share."""

import ctypes
import sys
import types

import numpy as np

from ikpy_llm.kernels.compiler import compile as compiler
from ikpy_llm.kernels.compiler import jit

SLOT = 1024  # bytes per result
FLOATS = {"f16": "f2", "f32": "f4", "f64": "f8"}
INTEGERS = {"u8": "u1", "i8": "i1", "u16": "u2", "i16": "i2", "i32": "i4", "u32": "u4", "i64": "i8"}
ELEMENTS = FLOATS | INTEGERS  # element of a vector -> NumPy type
RNG = np.random.default_rng(1)
MODULE = types.ModuleType("ikpy_llm.kernels.cases")  # kernels are found by name inside the package
sys.modules[MODULE.__name__] = MODULE
CASES = {}


def define(name, kernel):
    """The name under which the compiler finds a kernel function."""
    setattr(MODULE, name, lambda: kernel)
    return jit.Kernel(f"cases.{name}")


def address_of(name, kernel):
    """Compile a kernel function for the current target."""
    symbol, module = compiler.build(define(name, kernel))
    linker = jit._linker()
    linker.add(symbol, compiler._machine().emit_object(module))
    linker.engine.finalize_object()
    return linker.engine.get_function_address(symbol)


def run(address, *words):
    """Call a kernel as the only thread."""
    packed = jit.pack_words(words)
    jit.function(address)(ctypes.addressof(packed), 0, 1)


def case(fn):
    """Register `fn() -> (kernel, inputs, expected arrays)`: result i is at out + i * SLOT, out is the last word."""
    CASES[fn.__name__] = fn
    return fn


def check(name):
    """Run a case; AssertionError when a result differs or more than it was written."""
    kernel, inputs, expected = CASES[name]()
    inputs = [np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a for a in inputs]
    out = np.full(len(expected) * SLOT, 0xA5, np.uint8)
    run(address_of(name, kernel), *inputs, out)
    for i, want in enumerate(map(np.atleast_1d, expected)):
        slot = out[i * SLOT : (i + 1) * SLOT]
        assert (slot[want.nbytes :] == 0xA5).all(), f"result {i} is longer than {want.nbytes} bytes"
        np.testing.assert_array_equal(slot[: want.nbytes].view(want.dtype), want, err_msg=f"result {i}")


def values(vt, n=1):
    """Random elements for n vectors of a type: all bits for integers, normal numbers for floats."""
    dtype, size = np.dtype(ELEMENTS[vt.elem]), n * vt.lanes
    if vt.is_float:
        return (RNG.standard_normal(size) * 8).astype(dtype)
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, size, dtype, endpoint=True)
