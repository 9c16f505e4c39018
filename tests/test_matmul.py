"""Matrix kernels against float64 within derived bounds; every kernel, thread and column count gives the same bits."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference_formats as formats
import reference_kernels as ref
from matmul_cases import (
    FLOAT_TYPES,
    GEMM_N,
    GOLDEN,
    QUANT_TYPES,
    ROWS,
    THOROUGH,
    TYPES,
    Matrix,
    T,
    W,
    all_kernels,
    columns_of,
    gemv_n,
    hashes,
    random_rows,
    random_x,
    ways,
)

import ikpy_llm
from ikpy_llm.kernels import quants
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.quants.interleaved import weave
from ikpy_llm.kernels.simd import target

HERE = Path(__file__).parent
EXTRAS = [{"bias": True}, {"residual": True}, {"bias": True, "residual": True}]
EXTRA_TYPES = ("Q4_K", "F16")  # bias and residual are added after the type is forgotten


@pytest.fixture(scope="module", autouse=True)
def kernels():
    jit.load(all_kernels())


def check(m: Matrix, how: str, x: np.ndarray, y: np.ndarray, x_acts: ref.Acts | None = None):
    """y against float64, from quantized and from original activations."""
    case = (m.type, m.rows, m.k, len(x), how)
    if m.is_float:
        wanted, bound = ref.float_product(m.parts, x)
        assert (np.abs(y - wanted) <= bound).all(), case
        return
    acts = x_acts or ref.quantize(x)
    wanted, bound = ref.product(m.parts, acts)
    assert (np.abs(y - wanted) <= bound).all(), case
    original = x.astype(np.float64) @ m.parts.exact.T
    assert (np.abs(y - original) <= bound + ref.quantization_error(m.parts, x, acts)).all(), case


@pytest.mark.slow
@pytest.mark.parametrize("name", THOROUGH)
def test_shapes(name):
    """Every row count with every width; column counts and thread counts take turns."""
    few, many, nth = itertools.cycle(gemv_n(name)), itertools.cycle(GEMM_N), itertools.cycle((1, 2, 3))
    for rows, k in itertools.product(ROWS, columns_of(name)):
        m = Matrix(name, rows, k, nth=next(nth))
        n, big = next(few), next(many)
        x = random_x(max(n, big), k)
        acts = None if m.is_float else ref.quantize(x)
        for how, count in ("gemv", n), ("gemm", big), ("gemm_rows", big), ("gemv_rows", 1):
            part = acts and ref.Acts(acts.codes[:count], acts.d[:count], acts.unit[:count])
            check(m, how, x[:count], m.run(how, x[:count], nth=next(nth)), part)


@pytest.mark.slow
@pytest.mark.parametrize("name", THOROUGH)
def test_same_bits(name):
    """A column has the same bits in every kernel, for every number of columns beside it and every number of threads."""
    for rows, k in (37, columns_of(name)[-1]), (16, columns_of(name)[3 % len(columns_of(name))]):
        m = Matrix(name, rows, k)
        x = random_x(max(GEMM_N), k, seed=1)
        y = m.run("gemm", x)
        check(m, "gemm", x, y)
        for n in sorted({*GEMM_N, *gemv_n(name)}):
            for how, nth in itertools.product(ways(name, n), (1, 2, 3)):
                z = m.run(how, x[-n:], nth=nth)
                assert z.tobytes() == y[-n:].tobytes(), (rows, k, n, how, nth)


@pytest.mark.parametrize("name", FLOAT_TYPES)
def test_float_rows_have_the_bits_of_panels(name):
    """Fewer rows than a vector has lanes, groups that are not full, columns that fill no vector; 1 to 3 threads."""
    for rows, k in itertools.product((1, 2, W - 1, W, W + 1, 2 * W, 37, 131), columns_of(name)):
        m, x = Matrix(name, rows, k, seed=2), random_x(1, k, seed=rows)
        wanted = m.run("gemv", x).tobytes()
        for nth in 1, 2, 3:
            assert m.run("gemv_rows", x, nth=nth).tobytes() == wanted, (rows, k, nth)
    m, x = Matrix(name, 2048 + 3, 1024), random_x(1, 1024)  # large enough for the last quarter to be shared
    assert m.run("gemv_rows", x, nth=2).tobytes() == m.run("gemv", x).tobytes()


@pytest.mark.parametrize("name", EXTRA_TYPES)
@pytest.mark.parametrize("extra", EXTRAS, ids="+".join)
def test_bias_and_residual(name, extra):
    """Added in this order with one rounding each; the residual may be y itself; rows of y may have gaps."""
    rng = np.random.default_rng(3)
    for rows in (1, 16, 33, 37):
        m = Matrix(name, rows, 512)
        for how, n in (
            ("gemv", 3 if name == "Q4_K" else 1),
            ("gemv_rows", 1),
            ("gemm", 1),
            ("gemm", 2 * T + 1),
            ("gemm", T),
        ):
            x = random_x(n, 512)
            bias, residual = (
                rng.standard_normal(rows).astype(np.float32),
                rng.standard_normal((n, rows)).astype(np.float32),
            )
            wanted = m.run(how, x)
            if "bias" in extra:
                wanted = wanted + bias
            if "residual" in extra:
                wanted = wanted + residual
            words = {"bias": bias if "bias" in extra else None, "residual": residual if "residual" in extra else None}
            for nth, gap, in_place in (1, 0, False), (2, 5, False), (3, 0, True), (2, 19, True):
                gap = 0 if how == "gemv_rows" else gap
                y = m.run(how, x, nth=nth, gap=gap, in_place=in_place and "residual" in extra, **words)
                assert (y == wanted).all(), (rows, how, n, nth, gap, in_place)


@pytest.mark.parametrize("name", ["Q4_0", "IQ2_XS", "F16"])
def test_dealt_rows(name):
    """Matrices long enough that part of them goes to whoever comes first: every row is computed, with the same bits."""
    for rows, k in (130, 256), (1021, 2048), (3000, 1536):
        m = Matrix(name, rows, k)
        x = random_x(1, k)
        for how in "gemv", "gemv_rows":
            wanted = m.run(how, x)
            for nth in (2, 4, 6, 16):
                assert m.run(how, x, nth=nth).tobytes() == wanted.tobytes(), (rows, k, how, nth)


@pytest.mark.parametrize("name", ["Q5_0", "Q6_K", "BF16"])
def test_gaps_between_rows(name):
    for rows in (1, 15, 16, 33):
        m = Matrix(name, rows, 256)
        for n in (gemv_n(name)[1], T, T + 3):
            x = random_x(n, 256)
            for how in ways(name, n):
                assert (m.run(how, x, gap=7) == m.run(how, x)).all()


@pytest.mark.parametrize("name", TYPES)
def test_zeros_and_small_values(name):
    """Zero rows, denormal rows and rows below 1e-30 give zeros (float types: their product)."""
    k = columns_of(name)[-1]
    m = Matrix(name, 17, k)
    x = np.zeros((T + 2, k), np.float32)
    x[1], x[2], x[3, ::5] = 1e-42, -0.0, 1e-31
    for n in (gemv_n(name)[1], T + 2):
        for how in ways(name, n):
            y = m.run(how, x[:n])
            if m.is_float:
                check(m, how, x[:1], y[:1])
                assert (np.abs(y) <= 1e-28).all()
            else:
                assert (y == 0).all(), how


# ---------------------------------------------------------------- integer part at its extremes
def extreme_rows(name: str, byte: int, k: int, scale: float) -> np.ndarray:
    """Two rows of codes and integer sub-scales made of one byte; float scales +scale and -scale, float minimums 1."""
    raw = np.full((2, quants.table.row_bytes(name, k)), byte, np.uint8)
    blocks = formats.blocks_of(name, raw)
    formats.put_scales(name, raw, [[scale], [-scale]])
    for floor in formats.minimums(name):
        blocks[floor] = 1
    if name == "Q6_K" and byte != 0x80:
        blocks["sc"] = -128  # |q| is largest for codes of 0, which a scale of 0 would hide
    return raw


def rounded_sums(w: formats.Weights, acts: ref.Acts) -> np.ndarray:
    """What a kernel must return for d = 1: exact integer sums, added in its order with a float32 rounding after each.

    All numbers are integers below 2^53, so float64 holds each sum before its rounding. Where scales are integers that
    the products are multiplied with (layout.scaled_as_integers), the sum of 32 columns becomes a float by itself.
    """
    as_integers, slices = layout.scaled_as_integers(w.type), len(acts.unit[0])
    sub = 32 if as_integers else formats.SUB[w.type]
    x, rows = acts.codes.astype(np.float64), len(w.code)
    terms = np.einsum("rjs,njs->nrj", (w.scale * w.code).reshape(rows, -1, sub), x.reshape(len(x), -1, sub))
    mins = -np.einsum("rjs,njs->nrj", w.floor.reshape(rows, -1, 32), x.reshape(len(x), -1, 32))
    total = np.zeros((len(x), rows), np.float32)
    for part, floor in zip(np.split(terms, slices, -1), np.split(mins, slices, -1), strict=True):
        acc = np.zeros_like(total)
        for j in range(256 // sub):
            term = part[..., j].astype(np.float32).astype(np.float64) if as_integers else part[..., j]
            acc = (acc + term).astype(np.float32)
            if w.type in formats.FLOAT_MINS:
                acc = (acc + floor[..., j]).astype(np.float32)
        if w.type in formats.INT_MINS:
            acc = (acc + floor.sum(-1)).astype(np.float32)
        total = (total + acc.astype(np.float64)).astype(np.float32)
    return total * np.float32(w.gain)


@pytest.mark.parametrize("name", QUANT_TYPES)
@pytest.mark.parametrize("byte", [0xFF, 0x00, 0x80, 0x7F])
def test_extreme_codes(name, byte):
    """Largest codes and sub-scales against activations of +-127: no integer sum overflows or saturates."""
    for k in (256, 512, 4096, 16384):
        m = Matrix(name, 2, k, extreme_rows(name, byte, k, 1.0))
        x = np.full((T + 1, k), 127, np.float32)
        x[1] = -127
        x[2, ::2] = -127
        x[3, ::3] = -127
        x[4] *= np.repeat(np.where(np.arange(k // 16) % 2, -1, 1), 16)
        acts = ref.quantize(x)
        assert (acts.d == 1).all() and (np.abs(acts.codes) == 127).all()
        wanted = rounded_sums(m.parts, acts)
        exact = x.astype(np.float64) @ m.parts.exact.T
        assert (np.abs(wanted - exact) <= 2.0**-24 * (k // 256 + 24) * (np.abs(x) @ np.abs(m.parts.exact).T + 1)).all()
        whole = formats.FORMATS[name].gain == 1 and (np.abs(x) @ np.abs(m.parts.exact).T).max() <= 2**24
        if k == 256 and name not in formats.INT_MINS and whole:
            assert (wanted == exact).all(), "one slice needs no rounding"
        for n in (1, gemv_n(name)[1], T + 1):
            for how in ways(name, n):
                assert (m.run(how, x[-n:]) == wanted[-n:]).all(), (k, n, how)
                assert (m.run(how, x[:n]) == wanted[:n]).all(), (k, n, how)


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_random_codes_with_full_activations(name):
    """Random codes and sub-scales, activations of +-127 in random order."""
    m = Matrix(name, 37, 4096, random_rows(name, 37, 4096))
    formats.put_scales(name, m.raw, 1)
    for field in formats.minimums(name):
        formats.blocks_of(name, m.raw)[field] = 1
    m = Matrix(name, 37, 4096, m.raw)
    x = np.random.default_rng(2).choice([-127, 127], (T + 1, 4096)).astype(np.float32)
    wanted = rounded_sums(m.parts, ref.quantize(x))
    for n in (1, gemv_n(name)[1], T + 1):
        for how in ways(name, n):
            assert (m.run(how, x[:n]) == wanted[:n]).all(), (n, how)


@pytest.mark.parametrize("name", QUANT_TYPES)
@pytest.mark.parametrize("scale", [65504.0, 2.0**-24, 6.0e-5])
def test_extreme_scales(name, scale):
    """Largest, smallest denormal and denormal half-float scales with random codes: within the bound."""
    for k in (256, 4096):
        raw = random_rows(name, 2, k)
        formats.put_scales(name, raw, scale)
        m = Matrix(name, 2, k, raw)
        x = random_x(T + 1, k)
        for n in (gemv_n(name)[1], T + 1):
            for how in ways(name, n):
                check(m, how, x[:n], m.run(how, x[:n]))


@pytest.mark.parametrize(("name", "count"), [("MXFP4", 255), ("NVFP4", 256)])
def test_every_scale_byte(name, count):
    """A row for each 8-bit scale (but the NaN of MXFP4): products without any rounding, infinite where too large."""
    k = formats.COLUMNS[name]
    raw = random_rows(name, count, k)
    formats.blocks_of(name, raw)["e" if name == "MXFP4" else "sc"] = np.arange(count).reshape(
        (-1, 1) if name == "MXFP4" else (-1, 1, 1)
    )
    m = Matrix(name, count, k, raw)
    x = np.random.default_rng(5).integers(-127, 128, (T + 1, k)).astype(np.float32)
    x[:, ::32] = 127
    with np.errstate(over="ignore"):
        wanted = (x.astype(np.float64) @ m.parts.exact.T).astype(np.float32)
    for n in (1, gemv_n(name)[1], T + 1):
        for how in ways(name, n):
            assert (m.run(how, x[:n]) == wanted[:n]).all(), (n, how)
    assert (m.dequantized() == m.parts.float32).all()


# ---------------------------------------------------------------- references from elsewhere
@pytest.mark.parametrize(
    ("name", "n", "theirs"),
    [
        pytest.param(t, n, theirs, id=f"{t}-{n}")
        for t in TYPES
        if t + ".q" in GOLDEN
        for n, theirs in zip((3, 64), GOLDEN[t + ".relrms"].tolist(), strict=True)
    ],
)
def test_golden_products(name, n, theirs):
    """Weights and activations (with outliers) of ik_llama.cpp, whose error is the measure of ours.

    We have a float scale per 32 columns of activations, it has that or one per 256. Roundings of the same step
    differ by chance; of 48 numbers (three columns), the RMS by up to a tenth. Where it has one per 256 (its error is
    then above 1.4e-2, for three columns above 1.7e-2) ours must not be larger than its own.
    """
    q, x = GOLDEN[name + ".q"], GOLDEN["act"]
    m = Matrix(name, *GOLDEN[name + ".deq"].shape, raw=q)
    exact = x[:n].astype(np.float64) @ m.parts.exact.T
    y = m.run("gemm", x[:n])
    check(m, "gemm", x[:n], y)
    error = np.sqrt(((y - exact) ** 2).mean() / (exact**2).mean())
    if m.is_float:
        assert error < 5e-7
    else:
        fine = 1.4e-2 if n == 64 else 1.7e-2
        assert error <= (min(1.1 * theirs, fine) if theirs < fine else theirs), (n, error, theirs)


# ---------------------------------------------------------------- other targets, guard pages
# One type for each kind of codes, scales and minimums.
REDUCED = ["Q4_0", "Q4_1", "Q6_K", "Q8_0", "F16", "Q2_K", "IQ4_XS", "IQ1_S", "IQ1_M", "NVFP4"]
HOST = target.current().name


def child(*words, **env):
    """matmul_cases.py in a process of its own."""
    command = [sys.executable, str(HERE / "matmul_cases.py"), *words]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": path, **env}
    )


OTHERS = {
    "avx2": ({}, REDUCED),
    "avx2 without VNNI": ({"IKPY_TARGET_NO_VNNI": "1"}, ["Q4_0", "Q8_0"]),
    "generic": ({}, REDUCED),
    "avx512 emulated": ({"IKPY_EMULATE": "1"}, ["Q4_1"]),
    "neon emulated": ({"IKPY_EMULATE": "1"}, ["Q8_0"]),
    "neon with i8mm emulated": ({"IKPY_EMULATE": "1", "IKPY_TARGET_I8MM": "1"}, ["Q8_0", "Q4_K"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_targets(name):
    """Within the bounds, and the same bits on every target that multiplies scales alike (layout.scaled_as_integers):
    the order of sums does not depend on the vector width."""
    kind, (env, types) = name.split()[0], OTHERS[name]
    if not env.get("IKPY_EMULATE") and (kind not in target.runnable() or (kind == HOST and not env)):
        pytest.skip(f"{kind} is not another target of this CPU")
    done = child("hashes", *types, **{"IKPY_EMULATE": "", "IKPY_TARGET": kind} | env)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = json.loads(done.stdout), hashes(types)
    assert {k.split(",")[0] for k in theirs} == {k.split(",")[0] for k in ours}
    alike = theirs.keys() & ours.keys()
    assert alike and {k: theirs[k] for k in alike} == {k: ours[k] for k in alike}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="mprotect")
def test_guard_pages():
    """No load or store past either end of any buffer; kernels may prefetch there."""
    done = child("guard", *THOROUGH)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout.splitlines()[-1:] + [
        done.stderr[-2000:]
    ]


# ---------------------------------------------------------------- Python API
@pytest.mark.parametrize("name", TYPES)
def test_api(name):
    k = columns_of(name)[-1]
    raw = random_rows(name, 19, k)
    m = Matrix(name, 19, k, raw)
    for data in raw, raw.tobytes(), bytearray(raw.tobytes()), memoryview(raw), np.repeat(raw, 2, axis=1)[:, ::2]:
        assert (ikpy_llm.dequantize(data, name, (19, k)) == m.dequantized()).all()
    for n in (1, gemv_n(name)[1], 9, 20):
        x = random_x(n, k)
        y = ikpy_llm.matmul(raw, name.lower(), (19, k), x)
        assert y.dtype == np.float32 and (y == m.run("gemm", x)).all()
    assert (
        ikpy_llm.matmul(raw, name, (19, k), x.astype(np.float64)[:, ::-1]) == m.run("gemm", x[:, ::-1].copy())
    ).all()
    assert ikpy_llm.matmul(raw, name, (19, k), np.zeros((0, k))).shape == (0, 19)


def test_api_lists_types():
    rows = {row["name"]: row for row in ikpy_llm.quant_types()}
    assert sorted(rows) == sorted(quants.file_types())
    assert {*rows} >= {"Q4_K_R4", "Q8_K_R16", "BF16_R16", "I2_S", "IQ1_S_R4"} and "IQ1_S_R1" not in rows
    assert rows["Q4_K_R4"]["id"] == 212 and rows["Q4_K_R4"]["panel_bpw"] == rows["Q4_K"]["panel_bpw"]
    assert rows["Q4_K"]["id"] == 12 and rows["Q4_K"]["block"] == 256 and rows["Q4_K"]["bytes"] == 144
    assert rows["Q4_K"]["bpw"] == 4.5 and all(
        0.97 < r["panel_bpw"] / r["bpw"] < 1.03 for name, r in rows.items() if not quants.get(weave.base_of(name)).wider
    )


X = np.ones((2, 256), np.float32)
BAD = np.where(np.arange(256) == 7, np.nan, X)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((bytes(143), "Q4_K", (1, 256)), r"Q4_K: 1 x 256 takes 144 bytes, data has 143"),
        ((bytes(145), "Q4_K", (1, 256)), r"144 bytes, data has 145"),
        ((b"", "Q4_K", (1, 256)), r"144 bytes, data has 0"),
        ((bytes(144), "Q9_X", (1, 256)), r"'Q9_X'.*Q4_K"),
        ((bytes(144), "", (1, 256)), r"there are .*Q4_K"),
        ((bytes(296), "Q8_K", (1, 256)), r"'Q8_K'.*Q4_K"),
        ((bytes(144), "Q4_K", (1, 255)), r"Q4_K: 1 x 255: columns must be a positive multiple of 256"),
        ((bytes(72), "Q4_K", (1, 128)), r"multiple of 256"),
        ((bytes(18), "Q4_0", (1, 33)), r"multiple of 32"),
        ((b"", "Q4_0", (1, 0)), r"1 x 0"),
        ((b"", "Q4_0", (0, 32)), r"0 x 32"),
        ((bytes(18), "Q4_0", (-1, -32)), r"-1 x -32"),
    ],
)
def test_api_errors(words, message):
    """One line that says what is wrong and what would be accepted."""
    for call in (ikpy_llm.dequantize, lambda *w: ikpy_llm.matmul(*w, X)):
        with pytest.raises(ValueError, match=message) as error:
            call(*words)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (BAD, r"x holds values that are not finite"),
        (np.where(np.isnan(BAD), np.inf, X), r"not finite"),
        (X.astype(np.float64) * 1e39, r"not finite"),  # finite in float64 only
        (X[0], r"x has shape \(256,\), the matrix takes \(n, 256\)"),
        (X[:, :255], r"shape \(2, 255\)"),
        (X[None], r"shape \(1, 2, 256\)"),
        (np.float32(1), r"shape \(1,\)|shape \(\)"),
    ],
)
def test_api_refuses_activations(x, message):
    for name in ("Q4_K", "F16"):
        with pytest.raises(ValueError, match=message) as error:
            ikpy_llm.matmul(random_rows(name, 3, 256), name, (3, 256), x)
        assert "\n" not in str(error.value)
