"""Running the matrix kernels in tests: random matrices, buffers with margins, one `run` for all kernels.

python matmul_cases.py hashes TYPE...   JSON {case: sha256 of the results}, for comparison between targets
python matmul_cases.py guard TYPE...    every buffer beside an unmapped page; the last line names the last step
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import json
import mmap
import sys
from pathlib import Path

import numpy as np
import reference_formats as formats
import reference_kernels as ref

from ikpy_llm.kernels import quants
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.compiler.jit import Kernel
from ikpy_llm.kernels.derive import layout

TYPES = quants.names()
QUANT_TYPES = [t for t in TYPES if not quants.get(t).is_float]
FLOAT_TYPES = [t for t in TYPES if quants.get(t).is_float]
DATA = Path(__file__).parent / "data"  # bytes, values and errors of ik_llama.cpp
GOLDEN = {k: v for f in ("quants_golden", "quants_golden_ik") for k, v in np.load(DATA / f"{f}.npz").items()}
W, T = layout.width(), layout.gemm_tile()
MARGIN, PATTERN = 256, 0xA5  # bytes around every output

# What the slowest tests take: of the types that only ik_llama.cpp has one of each kind of codes, scales and rows.
_FEW = {"IQ2_K", "IQ3_KS", "IQ4_KS", "IQ5_K", "IQ6_K", "IQ3_KT", "IQ1_BN", "Q8_KV", "IQ1_M_R1"}
THOROUGH = [t for t in TYPES if (t not in formats.IK_FORMATS and t[-3:] != "_R1") or t in _FEW]

ROWS = (1, 2, 15, 16, 17, 31, 32, 33, 37)
GEMM_N = (1, 2, 5, 6, 7, 12, 13, 33)


def columns_of(type_name: str) -> tuple[int, ...]:
    if type_name in FLOAT_TYPES:
        return (1, 2, 15, 33, 64, 255, 256, 257, 300, 511, 576)
    block = max(quants.get(type_name).block, 32)
    return tuple(
        block * n for n in {32: (1, 2, 3, 8, 9, 16, 18), 64: (1, 2, 4, 5, 9), 128: (1, 2, 3, 5)}.get(block, (1, 2, 3))
    )


def gemv_n(type_name: str) -> tuple[int, ...]:
    """Column counts whose GEMV is compiled for a type: all for two types, for the others 1 and one more in turn."""
    return tuple(range(1, 9)) if type_name in ("Q4_1", "Q6_K") else (1, 2 + TYPES.index(type_name) % 7)


def all_kernels(types=TYPES, counts=gemv_n) -> list[Kernel]:
    """What `Matrix` may call for these types: loaded at once, so that they compile in parallel."""
    kernels = [Kernel("derive.gemv", type=t, n=n) for t in types for n in counts(t)]
    kernels += [Kernel("derive.gemm", type=t, **rows) for t in types for rows in ({}, {"rows_layout": True})]
    kernels += [Kernel(f"derive.{name}", type=t) for t in types for name in ("gemv_rows", "pack", "dequant")]
    needed = {(n, t in FLOAT_TYPES) for t in types for n in (1, T, *counts(t))}
    return kernels + [quantize_kernel(*each) for each in sorted(needed)]


def quantize_kernel(t: int, is_float: bool, source: str = "plain") -> Kernel:
    return Kernel("derive.quantize", source=source, t=t, is_float=is_float)


# ---------------------------------------------------------------- buffers
class Margins:
    """Allocates outputs between two margins of a pattern; `check` finds writes outside."""

    def __init__(self):
        self.kept = []

    def __call__(self, n_bytes: int, dtype=np.uint8) -> np.ndarray:
        whole = np.full(n_bytes + 2 * MARGIN + 64, PATTERN, np.uint8)
        skip = -(whole.ctypes.data + MARGIN) % 64 + MARGIN
        self.kept.append((whole, skip, n_bytes))
        return whole[skip : skip + n_bytes].view(dtype)

    def source(self, a: np.ndarray) -> np.ndarray:
        """Inputs stay where they are."""
        return np.ascontiguousarray(a)

    def check(self):
        for whole, skip, n in self.kept:
            assert (whole[:skip] == PATTERN).all() and (whole[skip + n :] == PATTERN).all(), "written outside"


class Guarded:
    """Every buffer in a mapping of its own that ends (or starts) at a page nobody may touch."""

    def __init__(self, at_end: bool):
        self.at_end, self.kept, self.libc = at_end, [], ctypes.CDLL(None, use_errno=True)

    def __call__(self, n_bytes: int, dtype=np.uint8) -> np.ndarray:
        page = mmap.PAGESIZE
        inner = -(-max(n_bytes, 1) // page) * page
        area = mmap.mmap(-1, inner + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for at in (base, base + page + inner):
            assert self.libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), 0) == 0
        first = page + (inner - n_bytes if self.at_end else 0)
        out = np.frombuffer(area, np.uint8)[first : first + n_bytes]
        out[:] = PATTERN
        self.kept.append(area)
        return out.view(dtype)

    def source(self, a: np.ndarray) -> np.ndarray:
        """A read-only copy."""
        out = self(a.nbytes, a.dtype).reshape(a.shape)
        out[:] = a
        page = mmap.PAGESIZE
        first = out.ctypes.data // page * page
        size = -(-(out.ctypes.data + a.nbytes - first) // page) * page
        assert self.libc.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.PROT_READ) == 0
        return out

    def check(self):
        pass


# ---------------------------------------------------------------- data
def random_rows(type_name: str, rows: int, k: int, seed: int = 0) -> np.ndarray:
    """uint8 [rows][row_bytes]: random bits with scales of ordinary size and either sign."""
    rng = np.random.default_rng([seed, rows, k])
    if type_name in formats.PLAIN:
        x = rng.standard_normal((rows, k)).astype(np.float32)
        wide = {"F32": x, "F16": x.astype(np.float16), "BF16": (x.view(np.uint32) >> 16).astype(np.uint16)}[type_name]
        return wide.view(np.uint8)
    raw = rng.integers(0, 256, (rows, quants.table.row_bytes(type_name, k)), np.uint8)
    blocks = formats.blocks_of(type_name, raw)
    if type_name != "NVFP4":  # whose scales may be any byte
        formats.put_scales(type_name, raw, rng.standard_normal(blocks.shape) * 0.02)
    for name in formats.minimums(type_name):
        blocks[name] = rng.standard_normal(blocks.shape) * 0.02
    return raw


def random_x(n: int, k: int, seed: int = 0) -> np.ndarray:
    """float32 [n][k] whose 32-column blocks differ in size by powers up to 2^17, so that all exponents occur."""
    rng = np.random.default_rng([seed, n, k])
    size = np.exp2(-rng.integers(0, 18, (n, -(-k // 32))) * rng.integers(0, 2, (n, 1)))
    return (rng.standard_normal((n, k)) * np.repeat(size, 32, axis=1)[:, :k]).astype(np.float32)


def step_state(n: int) -> np.ndarray:
    return np.array([n, 0, n, 0], np.int64)


class Matrix:
    """A matrix of one type, woven into panels, and every way to multiply it."""

    def __init__(self, type_name: str, rows: int, k: int, raw=None, seed: int = 0, memory=Margins, nth: int = 1):
        self.type, self.rows, self.k, self.memory = type_name, rows, k, memory
        self.is_float = type_name in FLOAT_TYPES
        buffers = memory()
        self.raw = buffers.source(random_rows(type_name, rows, k, seed) if raw is None else raw)
        self.row_bytes = self.raw.shape[1]
        self.parts = formats.decode(type_name, np.array(self.raw))
        panels = buffers(layout.weight_bytes(type_name, rows, k))
        jit.call(Kernel("derive.pack", type=type_name), self.raw, self.row_bytes, rows, k, panels, 0, nth=nth)
        buffers.check()
        self.panels = buffers.source(panels)
        self.kept = buffers

    def quantized(self, x: np.ndarray, t: int, buffers) -> tuple[layout.ActsLayout, np.ndarray, int]:
        """(layout, acts, offset of this type's start values)."""
        f = layout.flavour(self.type)
        acts = layout.ActsLayout(t, (f,) if f else (), self.is_float)
        out, state = buffers(acts.n_bytes(*x.shape)), step_state(len(x))
        words = [zero * 256 + sub for zero, sub in acts.stored] + [0, 0, 0]
        head = buffers.source(x), 0, out, self.k, self.k, acts.stride
        jit.call(quantize_kernel(t, self.is_float), *head, *words[:3], 0.0, state)
        assert state[3] == 0, "finite values were reported as not finite"
        return acts, buffers.source(out), acts.start(f) if f else 0

    def run(self, how: str, x, nth: int = 1, bias=None, residual=None, in_place=False, gap: int = 0) -> np.ndarray:
        """y [n][rows] by "gemv", "gemm", "gemm_rows" or "gemv_rows" (n = 1).

        gap: floats between the rows of y; in_place: y holds the residual.
        """
        n, stride, buffers = len(x), self.rows + gap, self.memory()
        acts, codes, start = self.quantized(x, T if how.startswith("gemm") else n, buffers)
        y = buffers(4 * (n * stride - gap), np.float32)
        canary = y[:1].copy()
        at = np.lib.stride_tricks.as_strided(y, (n, self.rows), (4 * stride, 4))
        spec = {"type": self.type}
        res = 0
        if residual is not None:
            res = y if in_place else buffers(y.nbytes, np.float32)
            np.lib.stride_tricks.as_strided(res, (n, self.rows), (4 * stride, 4))[:] = residual
            res = res if in_place else buffers.source(res)
        tail = (0 if bias is None else buffers.source(bias.astype(np.float32)), res)
        source = self.raw if how.endswith("rows") else self.panels
        claim = np.zeros(1, np.int64) if nth % 2 == 0 else 0  # threads that share the end of the matrix, or not
        if how == "gemv":
            words = source, codes, acts.stride, start, y, stride, self.rows, self.k, *tail, claim
            spec = Kernel("derive.gemv", n=n, **spec)
        elif how == "gemv_rows":
            assert n == 1
            words = source, self.row_bytes, codes, acts.stride, start, y, self.rows, self.k, *tail, claim
            spec = Kernel("derive.gemv_rows", **spec)
        else:
            size = layout.gemm_scratch_bytes(n)
            head = source, self.row_bytes, codes, acts.stride, start, y, stride, self.rows, self.k
            words = *head, *tail, buffers(nth * size), size, step_state(n), claim
            spec = Kernel("derive.gemm", **spec, **({"rows_layout": True} if how == "gemm_rows" else {}))
        jit.call(spec, *words, nth=nth)
        buffers.check()
        if gap:
            outside = np.ones(y.size, bool)
            np.lib.stride_tricks.as_strided(outside, (n, self.rows), (stride, 1))[:] = False
            assert (y[outside].view(np.uint32) == canary.view(np.uint32)).all(), "written between rows"
        return at.copy()

    def dequantized(self, nth: int = 1) -> np.ndarray:
        buffers = self.memory()
        out = buffers(4 * self.rows * self.k, np.float32)
        jit.call(Kernel("derive.dequant", type=self.type), self.raw, self.row_bytes, out, self.rows, self.k, nth=nth)
        buffers.check()
        return out.reshape(self.rows, self.k).copy()

    def looked_up(self, ids, scale: float = 1.0, nth: int = 1) -> np.ndarray:
        """get_rows."""
        buffers = self.memory()
        out, ids = buffers(4 * len(ids) * self.k, np.float32), buffers.source(np.asarray(ids, np.int32))
        words = self.raw, self.row_bytes, ids, out, self.k, float(scale), step_state(len(ids))
        jit.call(Kernel("derive.get_rows", type=self.type), *words, nth=nth)
        buffers.check()
        return out.reshape(len(ids), self.k).copy()


def ways(type_name: str, n: int) -> list[str]:
    """Kernels that can multiply n columns."""
    return ["gemv"] * (n in gemv_n(type_name)) + ["gemm", "gemm_rows"] + ["gemv_rows"] * (n == 1)


# ---------------------------------------------------------------- as a program
def hashes(types: list[str]) -> dict[str, str]:
    """Results of the kernels on fixed data, each checked against its bound."""
    few = 3  # the one GEMV beside those of a single column
    jit.load([k for k in all_kernels(types, lambda t: (few,)) if k.path != "derive.dequant"])
    out = {}
    for t in types:
        m = Matrix(t, 37, columns_of(t)[-1])
        for n, names in (1, ["gemv_rows"]), (few, ["gemv", "gemm", "gemm_rows"]), (13, ["gemm", "gemm_rows"]):
            x = random_x(n, m.k)
            for how in names:
                y = m.run(how, x)
                if m.is_float:
                    wanted, bound = ref.float_product(m.parts, x)
                else:
                    wanted, bound = ref.product(m.parts, ref.quantize(x))
                assert (np.abs(y - wanted) <= bound).all(), (t, n, how)
                key = f"{t} n={n} {how}{', integer scales' * layout.scaled_as_integers(t)}"
                out[key] = hashlib.sha256(y.tobytes()).hexdigest()
    return out


def guard(types: list[str]) -> None:
    """Matrices of 1 to 9 rows and of one panel and a bit, narrow and odd widths."""
    jit.load([*all_kernels(types), *(Kernel("derive.get_rows", type=t) for t in types)])
    for at_end, t in itertools.product((True, False), types):
        widths = columns_of(t)[:4] if t in QUANT_TYPES else (1, 2, 15, 33, 257)
        for rows, k in dict.fromkeys([(r, widths[0]) for r in range(1, 10)] + [(W + 3, k) for k in widths]):
            case = t, rows, k, "end" if at_end else "start"
            print("pack", *case, flush=True)
            m = Matrix(t, rows, k, memory=functools.partial(Guarded, at_end))
            print("dequant", *case, flush=True)
            m.dequantized()
            print("get_rows", *case, flush=True)
            m.looked_up([rows - 1, 0])
            for n in (1, gemv_n(t)[1], T + 1):
                for how in ways(t, n):
                    print(how, n, *case, flush=True)
                    m.run(how, random_x(n, k), nth=2)
    print("done")


if __name__ == "__main__":
    if sys.argv[1] == "hashes":
        print(json.dumps(hashes(sys.argv[2:])))
    else:
        guard(sys.argv[2:])
