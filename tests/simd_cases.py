"""Every SIMD operation against NumPy on the target of this process (IKPY_TARGET); test_simd.py runs it once per target.

A case is a kernel that stores its results into slots of SLOT bytes, and the NumPy arrays that should be there; what is
left of a slot must stay untouched. Prints one JSON object: case -> error or "", and the operations no case uses.
"""

import json
import re
from pathlib import Path

import numpy as np
import simd_dots  # noqa: F401  (registers its cases)
import simd_instructions
import simd_signals  # noqa: F401  (registers its cases)
import simd_threads  # noqa: F401  (registers its cases)
from simd_harness import CASES, ELEMENTS, RNG, SLOT, address_of, case, check, run, values

from ikpy_llm.kernels import simd
from ikpy_llm.kernels.simd import core, mathfn

LANES = simd.LANES
F32, I32V, U32V, F16, U16, U8, I8V, I16V, U8L, I8L, U8X16, U8X32 = (
    getattr(simd, n) for n in "F32 I32V U32V F16 U16 U8 I8V I16V U8L I8L U8X16 U8X32".split()
)
I64L, F64L = core.Vec("i64", LANES), core.Vec("f64", LANES)


# ---------------------------------------------------------------- operators
def _integers(vt):
    shift = 3

    def kernel(x, y, out, ith, nth):
        a, b = simd.load(vt, x), simd.load(vt, y)
        simd.store(out, a + b)
        simd.store(out + SLOT, a - b)
        simd.store(out + 2 * SLOT, a * b)
        simd.store(out + 3 * SLOT, (a & b) | (a ^ b))
        simd.store(out + 4 * SLOT, a << shift)
        simd.store(out + 5 * SLOT, a >> shift)
        simd.store(out + 6 * SLOT, simd.select(a < b, a, simd.select(a >= b, b, a)))
        simd.store(out + 7 * SLOT, simd.select(a == b, a, simd.select(a != b, a ^ b, b)))
        simd.store(out + 8 * SLOT, simd.select(a > b, a, simd.select(a <= b, b, a)))
        simd.store(out + 9 * SLOT, simd.minimum(a, b))
        simd.store(out + 10 * SLOT, simd.maximum(a, b))
        c = a
        c += b
        c ^= 1
        simd.store(out + 11 * SLOT, c)
        simd.store(out + 12 * SLOT, 7 - a)

    a, b = values(vt), values(vt)
    a[: vt.lanes // 4] = b[: vt.lanes // 4]
    one, seven = a.dtype.type(1), a.dtype.type(7)
    low, high = np.minimum(a, b), np.maximum(a, b)
    expected = a + b, a - b, a * b, a | b, a << shift, a >> shift, low, np.where(a == b, a, a ^ b), high, low, high
    return kernel, (a, b), (*expected, (a + b) ^ one, seven - a)


for _vt in (U8, I8V, I16V, I32V, U32V, U16, I64L, core.Vec("i16", LANES)):
    CASES[f"operators_{_vt.elem}_{_vt.lanes}"] = lambda vt=_vt: _integers(vt)


@case
def operators_f32():
    def kernel(x, y, out, ith, nth):
        a, b = simd.load(F32, x), simd.load(F32, y)
        simd.store(out, a + b)
        simd.store(out + SLOT, a - b * np.float32(2))
        simd.store(out + 2 * SLOT, a / b)
        simd.store(out + 3 * SLOT, simd.select(a < b, a, b))
        simd.store(out + 4 * SLOT, simd.minimum(a, b))
        simd.store(out + 5 * SLOT, simd.maximum(a, b))
        simd.store(out + 6 * SLOT, 1 / a)
        c = a
        c *= b
        simd.store(out + 7 * SLOT, c)
        simd.store(out + 8 * SLOT, simd.select(a == b, b, simd.select(a > b, a, b)))

    a, b = values(F32), values(F32)
    two, low, high = np.float32(2), np.minimum(a, b), np.maximum(a, b)
    return kernel, (a, b), (a + b, a - b * two, a / b, low, low, high, 1 / a, a * b, high)


@case
def minimum_of_nan():
    def kernel(x, y, out, ith, nth):
        a, b = simd.load(F32, x), simd.load(F32, y)
        simd.store(out, simd.minimum(a, b))
        simd.store(out + SLOT, simd.maximum(a, b))
        simd.store(out + 2 * SLOT, simd.select(a < b, a, simd.zeros(F32)))
        simd.store(out + 3 * SLOT, simd.select(a != b, a, simd.zeros(F32)))

    a, b = values(F32), values(F32)
    a[0] = b[1] = np.nan
    nan = np.isnan(a) | np.isnan(b)
    zero = np.float32(0)
    low, high = np.where(nan, b, np.fmin(a, b)), np.where(nan, b, np.fmax(a, b))
    return kernel, (a, b), (low, high, np.where(nan, zero, np.where(a < b, a, zero)), np.where(nan, zero, a))


# ---------------------------------------------------------------- memory
@case
def load_store():
    def kernel(x, out, ith, nth):
        simd.prefetch(x)
        simd.prefetch_l2(x)
        simd.store(out, simd.load(U8, x + 1))
        simd.store(out + SLOT, simd.splat_load(F32, x + 3))
        simd.store(out + 2 * SLOT, simd.splat4(U8, x + 5))
        simd.store(out + 3 * SLOT, simd.splat(F32, np.float32(1.5)))
        simd.store(out + 4 * SLOT, simd.splat(I32V, -7))
        simd.store(out + 5 * SLOT, simd.splat(U8, 200))
        simd.store(out + 6 * SLOT, simd.zeros(F32))
        simd.store(out + 7 * SLOT, simd.iota(I32V))
        simd.store(out + 8 * SLOT, simd.splat_load(F16, x + 7))

    x = RNG.integers(0, 120, 512, np.uint8)
    at = lambda dtype, i: np.repeat(x[i : i + np.dtype(dtype).itemsize].view(dtype), LANES)  # noqa: E731
    small = np.full(LANES, 1.5, "f4"), np.full(LANES, -7, "i4"), np.full(4 * LANES, 200, "u1"), np.zeros(LANES, "f4")
    quads = np.tile(x[5:9], LANES)
    return kernel, (x,), (x[1 : 1 + 4 * LANES], at("f4", 3), quads, *small, np.arange(LANES, dtype="i4"), at("f2", 7))


@case
def tiles():
    N = 3

    def kernel(x, out, ith, nth):
        t = simd.tile_load(F32, N, x, 80)
        simd.tile_store(out, 4 * LANES, t)
        simd.store(out + SLOT, simd.get(t, 1))
        simd.tile_store(out + 2 * SLOT, 4 * LANES, simd.tile_splat(F32, N, x, 12))
        simd.tile_store(out + 3 * SLOT, 4 * LANES, simd.tile_splat4(U8, N, x, 12))
        simd.tile_store(out + 4 * SLOT, 4 * LANES, simd.fma(t, simd.get(t, 0), simd.tile_zeros(F32, N)))
        simd.tile_store(out + 5 * SLOT, 4 * LANES, (t + t) * np.float32(3) - simd.get(t, 2))
        simd.tile_store(out + 6 * SLOT, 4 * LANES, simd.select(t > simd.get(t, 0), t, simd.absolute(t)))

    x = values(F32, 16)
    t = np.stack([x[i * 20 : i * 20 + LANES] for i in range(N)])
    quads = np.stack([np.tile(x[i * 3 : i * 3 + 1].view("u1"), LANES) for i in range(N)])
    splats = np.repeat(x[0 : 3 * N : 3], LANES)
    sums = (t + t) * np.float32(3) - t[2]
    picked = np.where(t > t[0], t, np.abs(t))
    return kernel, (x,), (t.ravel(), t[1], splats, quads.ravel(), (t * t[0]).ravel(), sums.ravel(), picked.ravel())


@case
def outer():
    N, M = 3, 2
    NM = N * M

    def kernel(x, y, z, out, ith, nth):
        acc = simd.tile_load(F32, NM, z, 4 * LANES)
        got = simd.outer_fma(acc, simd.tile_load(F32, N, x, 4 * LANES), simd.tile_load(F32, M, y, 4 * LANES))
        simd.tile_store(out, 4 * LANES, got)

    x, y, z = values(F32, N).reshape(N, 1, -1), values(F32, M).reshape(1, M, -1), values(F32, NM).reshape(N, M, -1)
    wanted = (x.astype("f8") * y + z).astype("f4").ravel()
    return kernel, (x, y, z), (wanted,)


@case
def scalars():
    def kernel(x, out, ith, nth):
        simd.store_i64(out, simd.load_u8(x))
        simd.store_i64(out + SLOT, simd.load_i8(x))
        simd.store_i64(out + 2 * SLOT, simd.load_u16(x + 1))
        simd.store_i64(out + 3 * SLOT, simd.load_i16(x + 1))
        simd.store_i64(out + 4 * SLOT, simd.load_i32(x + 3))
        simd.store_i64(out + 5 * SLOT, simd.load_u32(x + 3))
        simd.store_i64(out + 6 * SLOT, simd.load_i64(x + 5))
        simd.store_f32(out + 7 * SLOT, simd.load_f32(x + 13))
        simd.store_f32(out + 8 * SLOT, simd.load_f16(x + 17))
        simd.store_f32(out + 9 * SLOT, simd.load_f64(x + 19))
        simd.store_u8(out + 10 * SLOT, simd.load_i64(x + 5))
        simd.store_i8(out + 11 * SLOT, simd.load_i64(x + 5))
        simd.store_i16(out + 12 * SLOT, simd.load_i64(x + 5))
        simd.store_i32(out + 13 * SLOT, simd.load_i64(x + 5))
        simd.store_f16(out + 14 * SLOT, simd.load_f32(x + 13))
        simd.store_i64(out + 15 * SLOT, simd.f32_bits(simd.load_f32(x + 13)))
        simd.store_f32(out + 16 * SLOT, simd.f32_from_bits(simd.load_i32(x + 13)))
        simd.store_f32(out + 17 * SLOT, simd.f16_from_bits(simd.load_u16(x + 17)))

    x = RNG.integers(128, 256, 64, np.uint8)
    x[13:17], x[17:19] = np.array([-1.2345], "f4").view("u1"), np.array([2.5], "f2").view("u1")
    x[19:27] = np.array([np.pi], "f8").view("u1")
    at = lambda dtype, i: x[i : i + np.dtype(dtype).itemsize].view(dtype)  # noqa: E731
    wide = [at(t, i).astype("i8") for t, i in (("u1", 0), ("i1", 0), ("u2", 1), ("i2", 1), ("i4", 3), ("u4", 3))]
    low = [at("i8", 5).astype(t) for t in ("u1", "i1", "i2", "i4")]
    f = at("f4", 13)
    expected = *wide, at("i8", 5), f, at("f2", 17).astype("f4"), at("f8", 19).astype("f4"), *low, f.astype("f2")
    return kernel, (x,), (*expected, f.view("u4").astype("i8"), f, at("f2", 17).astype("f4"))


# ---------------------------------------------------------------- conversions
def _cast(have, want, data=None):
    def kernel(x, out, ith, nth):
        simd.store(out, simd.cast(want, simd.load(have, x)))

    x = values(have) if data is None else np.resize(np.array(data, ELEMENTS[have.elem]), have.lanes)
    return kernel, (x,), (x.astype(ELEMENTS[want.elem]),)


for _have, _want, _data in (
    (F16, F32, None),
    (F32, F16, [1, -2.5, 65504, 1e-7, 6e-8, 0.1, 2049, 2051, -0.0]),
    (F32, I32V, [-2.7, 2.7, 0.5, -0.5, 1e6, -1e6]),
    (I32V, F32, None),
    (U32V, F32, None),
    (U8L, I32V, None),
    (I8L, I32V, None),
    (U8L, F32, None),
    (U16, I32V, None),
    (I32V, core.Vec("i16", LANES), None),
    (I32V, I8L, None),
    (U8, core.Vec("u16", 4 * LANES), None),
    (I8V, core.Vec("i16", 4 * LANES), None),
    (F32, F64L, None),
    (F64L, F32, None),
    (I32V, I64L, None),
    (F32, U8L, [0, 1.9, 254.6, 17]),
    (F32, F32, None),
):
    CASES[f"cast_{_have.elem}_{_want.elem}_{_want.lanes}"] = lambda h=_have, w=_want, d=_data: _cast(h, w, d)


@case
def bit_patterns():
    def kernel(x, out, ith, nth):
        simd.store(out, simd.bits(I32V, simd.load(F32, x)) >> 4)
        simd.store(out + SLOT, simd.bits(I16V, simd.load(U8, x)) + 1)
        simd.store(out + 2 * SLOT, simd.bf16_to_f32(simd.load(U16, x)))

    x = values(F32)
    bf16 = (x.view("u2")[:LANES].astype("u4") << 16).view("f4")
    return kernel, (x,), (x.view("i4") >> 4, x.view("i2") + np.int16(1), bf16)


# ---------------------------------------------------------------- arithmetic
@case
def rounding():
    def kernel(x, out, ith, nth):
        v = simd.load(F32, x)
        simd.store(out, simd.rint(v))
        simd.store(out + SLOT, simd.floor(v))
        simd.store(out + 2 * SLOT, simd.absolute(v))
        simd.store(out + 3 * SLOT, simd.sqrt(simd.absolute(v)))

    x = np.resize(np.array([0.5, 1.5, 2.5, -0.5, -1.5, 3.49, -3.51, 1e7], "f4"), LANES)
    return kernel, (x,), (np.rint(x), np.floor(x), np.abs(x), np.sqrt(np.abs(x)))


@case
def fused_multiply_add():
    def kernel(x, y, z, out, ith, nth):
        simd.store(out, simd.fma(simd.load(F32, x), simd.load(F32, y), simd.load(F32, z)))

    x, y = values(F32), values(F32)
    z = -(x * y)  # what is left is the rounding error of the product: only a fused operation gives it
    return kernel, (x, y, z), ((x.astype("f8") * y + z).astype("f4"),)


@case
def fields():
    def kernel(x, shift, out, ith, nth):
        v = simd.load(U8, x)
        simd.store(out, simd.field(v, 0, 4))
        simd.store(out + SLOT, simd.field(v, 4, 4))
        simd.store(out + 2 * SLOT, simd.field(v, shift, 2))
        simd.store(out + 3 * SLOT, simd.field(v, shift, shift - 1))
        simd.store(out + 4 * SLOT, simd.field(v, 0, 8))

    x = values(U8)
    return kernel, (x, 2), (x & 15, x >> 4, (x >> 2) & 3, (x >> 2) & 1, x)


# ---------------------------------------------------------------- across lanes
@case
def lanes():
    def kernel(x, y, z, out, ith, nth):
        a, b, f = simd.load(U8, x), simd.load(U8, y), simd.load(F32, z)
        simd.store(out, simd.join(a, b))
        simd.store(out + SLOT, simd.low(a))
        simd.store(out + 2 * SLOT, simd.high(a))
        simd.store(out + 3 * SLOT, simd.interleave_low(a, b))
        simd.store(out + 4 * SLOT, simd.interleave_high(a, b))
        simd.store_f32(out + 5 * SLOT, simd.reduce_max(f))
        simd.store_i64(out + 6 * SLOT, simd.reduce_add(simd.cast(I32V, f)))
        simd.store_f32(out + 7 * SLOT, simd.reduce_add(simd.rint(f)))
        simd.store_i64(out + 8 * SLOT, simd.reduce_max(simd.cast(I32V, f)))
        simd.store(out + 9 * SLOT, simd.interleave_low(f, f + np.float32(1)))

    a, b, f = values(U8), values(U8), values(F32)
    half = 2 * LANES
    woven = np.stack([a, b], 1)
    whole = f.astype("i4")
    reduced = f.max(), np.int64(whole.sum()), np.rint(f).sum(), np.int64(whole.max())
    floats = np.stack([f, f + np.float32(1)], 1)[: LANES // 2].ravel()
    parts = np.concatenate([a, b]), a[:half], a[half:], woven[:half].ravel(), woven[half:].ravel()
    return kernel, (a, b, f), (*parts, *reduced, floats)


@case
def lookups_of_large_tables():
    t32, t64 = RNG.integers(0, 256, 32, np.uint8), RNG.integers(0, 256, 64, np.uint8)
    small, large = simd.byte_vector(t32), simd.byte_vector(t64)

    def kernel(x, y, out, ith, nth):
        simd.store(out, simd.lookup(small(), simd.load(U8X16, x)))
        simd.store(out + SLOT, simd.lookup(small(), simd.load(U8, x)))
        simd.store(out + 2 * SLOT, simd.lookup(large(), simd.load(U8X32, y)))
        simd.store(out + 3 * SLOT, simd.lookup(large(), simd.load(U8, y)))

    x, y = (RNG.permutation(np.arange(64, dtype=np.uint8) % n) for n in (32, 64))
    return kernel, (x, y), (t32[x[:16]], t32[x[: 4 * LANES]], t64[y[:32]], t64[y[: 4 * LANES]])


@case
def lookups():
    constant_table = simd.byte_vector([3, 1, 4, 1, 5, 9, 2, 6])
    held = simd.byte_table(bytes(range(7, 47)))

    def kernel(t, x, bits, out, ith, nth):
        table = simd.load(U8X16, t)
        simd.store(out, simd.lookup(table, simd.load(U8X16, x)))
        simd.store(out + SLOT, simd.lookup(table, simd.load(U8X32, x)))
        simd.store(out + 2 * SLOT, simd.lookup(table, simd.load(U8, x)))
        simd.store(out + 3 * SLOT, simd.lookup(constant_table(), simd.load(U8L, x)))
        simd.store(out + 4 * SLOT, simd.bits32(bits))
        simd.store(out + 5 * SLOT, simd.bytes16(simd.load_i64(held() + 3), simd.load_i64(held() + 30)))

    t, x = values(U8X16), RNG.integers(0, 16, 64, np.uint8)
    const = np.array([3, 1, 4, 1, 5, 9, 2, 6] + [0] * 8, np.uint8)
    mask = 0x89ABCDEF
    bits = np.array([mask >> i & 1 for i in range(32)], np.uint8)
    pair = np.array([*range(10, 18), *range(37, 45)], np.uint8)
    return kernel, (t, x, mask), (t[x[:16]], t[x[:32]], t[x[: 4 * LANES]], const[x[:LANES]], bits, pair)


# ---------------------------------------------------------------- between threads, stack
@case
def calls():
    def inner(value, out, ith, nth):
        simd.store_i64(out, value * 10 + ith * 2 + nth)

    def kernel(fn, args, out, ith, nth):
        simd.store_i64(args + 8, out)
        simd.call_kernel(fn, args, 3, 4)

    words = np.array([5, 0], np.int64)
    return kernel, (address_of("inner", inner), words), (np.int64(60),)


# ---------------------------------------------------------------- elementary functions, over their whole range
def _function(fn, reference, bound, absolute=False, top=87):
    def kernel(x, out, n, ith, nth):
        for i in range(0, n, LANES):
            simd.store(out + i * 4, fn(simd.load(F32, x + i * 4)))

    x = np.concatenate([np.linspace(-top, top, 1 << 16), np.linspace(-2, 2, 1 << 16), np.array([0, -0.0] * LANES)])
    x = x.astype("f4")
    out = np.empty_like(x)
    run(address_of(f"fn_{reference.__name__}", kernel), x, out, x.size)
    want = reference(x.astype("f8"))
    error = np.abs(out - want) / (1 if absolute else np.maximum(np.abs(want), 1e-38))
    assert error.max() < bound, f"error {error.max():.3g} at {x[error.argmax()]!r}, promised {bound}"
    return out, x


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


FUNCTIONS = {
    "exp": lambda: _function(mathfn.exp, np.exp, 2e-7),
    "silu": lambda: _function(mathfn.silu, silu, 4e-7, top=80),
    "gelu": lambda: _function(mathfn.gelu, gelu, 1e-6, absolute=True, top=5),
}


def main():
    results = {}
    for name, test in {**{n: lambda n=n: check(n) for n in CASES}, **FUNCTIONS, **simd_instructions.CHECKS}.items():
        try:
            test()
            results[name] = ""
        except Exception as error:  # reported per case by the parent
            results[name] = f"{type(error).__name__}: {error}"
    source = "".join(p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("simd_*.py"))
    unused = [
        op
        for op in core.OPS
        if not re.search(rf"simd\.{op}\(", source) and op not in ("table", "buffer", "instruction")
    ]
    print(
        json.dumps({"target": core.TARGET.title, "isa": sorted(core.TARGET.isa), "results": results, "unused": unused})
    )


if __name__ == "__main__":
    main()
