"""Quantization types: declarations against the GGUF table, decoding exact to the bit against three decoders, rows."""

import gguf
import numpy as np
import pytest
import reference_formats as formats
from matmul_cases import FLOAT_TYPES, GOLDEN, QUANT_TYPES, TYPES, Matrix, random_rows

import ikpy_llm
from ikpy_llm.kernels import quants
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.compiler.jit import Kernel
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.quants import table
from ikpy_llm.kernels.simd import target


@pytest.fixture(scope="module", autouse=True)
def kernels():
    jit.load([Kernel(f"derive.{name}", type=t) for t in TYPES for name in ("dequant", "pack", "get_rows")])


def gguf_dequantize(type_name, raw):
    """By the gguf package; what it cannot decode (Q1_0_G128 and ik_llama.cpp's types) our own decoder does."""
    if type_name == "Q1_0_G128" or type_name not in gguf.GGMLQuantizationType.__members__:
        return formats.decode(type_name, raw).float32
    kind = gguf.GGMLQuantizationType(table.by_name(type_name).id)
    return gguf.dequantize(raw, kind).reshape(len(raw), -1)


def same(a, b):
    """Equal bits, or both NaN."""
    assert a.dtype == b.dtype and a.shape == b.shape
    return ((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all()


def test_declared_types():
    assert set(TYPES) == {*formats.PLAIN, *formats.FORMATS}
    with pytest.raises(KeyError, match=r"Q9_X has no kernels yet; there are: .*Q4_0"):
        quants.get("Q9_X")


@pytest.mark.parametrize("name", TYPES)
def test_declaration_and_table(name):
    q, info = quants.get(name), table.by_name(name)
    assert q.name == info.name == name
    assert (q.block, q.n_bytes) == (info.block, info.bytes)
    kind = gguf.GGMLQuantizationType.__members__.get({"Q1_0_G128": "Q1_0"}.get(name, name))
    if kind is not None:
        assert kind == info.id and (info.block, info.bytes) == gguf.GGML_QUANT_SIZES[kind]
    assert info.id < 0 or table.by_id(info.id) is info
    if not q.is_float:
        assert q.meta == formats.FORMATS[name].meta == info.row_meta
        assert formats.BLOCKS[name].itemsize == info.bytes
        assert {k: v.offset for k, v in q.fields.items()} == {k: v[1] for k, v in formats.BLOCKS[name].fields.items()}
        assert (q.zero, q.sub) == (formats.ZERO[name], formats.SUB[name])
        assert (q.top > 127) == (name in LARGE)


NOT_IN_FILES = {t for t in TYPES if table.by_name(t).id < 0}  # what taking interleaved types apart makes

# Types whose levels + zero reach 128.
LARGE = {
    *("Q8_0", "Q8_KV", "IQ4_NL", "IQ4_XS", "IQ4_K", "IQ5_K", "IQ6_K", "IQ4_KS", "IQ4_KSS", "IQ5_KS"),
    *("IQ1_KT", "IQ2_KT", "IQ3_KT", "IQ4_KT", "Q8_KV_R1", "Q8_K_R1"),
}

# Panels that take more bits per weight than the file, for a decode that keeps up with memory: ordinary codes of 2, 3 or
# 4 bits instead of numbers in a grid or base-3 digits, bytes instead of 6-bit scales.
WIDER = {
    "Q3_K": 3 + 8 / 16 + 16 / 256,
    "TQ1_0": 2 + 16 / 256,
    "IQ1_S": 2 + (8 + 8) / 32 + 32 / 256,
    "IQ1_M": 3 + 4 / 16 + 16 / 256,
    "IQ2_XXS": 3 + 4 / 32 + 16 / 256,
    "IQ2_XS": 3 + 4 / 16 + 16 / 256,
    "IQ2_S": 3 + 4 / 16 + 16 / 256,
    "IQ3_XXS": 4 + 4 / 32 + 16 / 256,
    "IQ3_S": 4 + 4 / 32 + 16 / 256,
    "IQ3_K": 3 + 8 / 16 + 16 / 256,
    "IQ2_KL": 3 + 8 / 32,
    "IQ4_KSS": 4 + 8 / 32,
    "IQ1_KT": 8 + 8 / 32,
    "IQ2_KT": 8 + 8 / 32,
    "IQ3_KT": 8 + 4 / 32,
    "IQ4_KT": 8 + 8 / 32,
    "IQ1_BN": 2,
    "IQ1_S_R1": 3 + 8 / 32,
    "IQ1_M_R1": 3 + 4 / 16,
    "IQ6_K": layout.panel_bits(quants.get("IQ6_K")) + 8 / 16 + 32 / 256,
}
ONLY_ON_AVX2 = {"IQ6_K"}  # which finds one of 64 levels slowly


@pytest.mark.parametrize("name", TYPES)
def test_panels_are_as_small_as_rows(name):
    """Generation is bound by the bytes read: panels take those of the file, give or take 3 %, or what is stated."""
    in_files = {"IQ1_S_R1": "IQ1_S_R4", "IQ1_M_R1": "IQ1_M_R4", "Q8_K_R1": "Q8_K_R8", "Q8_KV_R1": "Q8_KV_R8"}.get(
        name, name
    )
    stated, info = {row["name"]: row for row in ikpy_llm.quant_types()}[in_files], table.by_name(name)
    assert quants.get(name).wider == (name in WIDER)
    for k in (256, 768, 4096):
        panel, row = layout.panel_bytes(name, k) / layout.width(), table.row_bytes(name, k)
        panel, row = panel - 4 * bool(quants.get(name).row), row - info.row_meta  # without the scales of rows
        assert stated["panel_bpw"] == 8 * panel / k and stated["bpw"] == 8 * row / k
        if name in WIDER:
            assert stated["panel_bpw"] == WIDER[name]
            assert (panel > 1.03 * row) == (name not in ONLY_ON_AVX2 or target.current().name == "avx2")
        else:
            assert 0.97 <= panel / row <= 1.03, (k, panel / row)
    assert layout.weight_bytes(name, 33, 256) == -(-33 // layout.width()) * layout.panel_bytes(name, 256)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (5, 3), (33, 17)])
def test_random_bytes(name, rows, blocks):
    """Against gguf.quants and our own decoder, any thread count."""
    m = Matrix(name, rows, blocks * max(quants.get(name).block, 32), seed=blocks)
    wanted = gguf_dequantize(name, m.raw)
    for nth in (1, 2, 3):
        assert same(m.dequantized(nth), wanted)
    assert same(wanted, m.parts.float32)


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_every_byte_value(name):
    """256 blocks, each filled with one byte value; scales 1."""
    n, k = 256, formats.COLUMNS[name]
    raw = np.repeat(np.arange(n, dtype=np.uint8)[:, None], table.row_bytes(name, k), axis=1)
    formats.put_scales(name, raw, 1)
    for field in formats.minimums(name):
        formats.blocks_of(name, raw)[field] = 1
    m = Matrix(name, n, k, raw)
    assert same(m.dequantized(), gguf_dequantize(name, raw)) and same(m.dequantized(), m.parts.float32)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q6_K", "Q2_K", "IQ2_XS", "IQ1_M", "TQ1_0"])
def test_every_scale(name):
    """All 65,536 half floats, infinities, NaN and denormals among them."""
    count = 65536
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (64, count // 64 * formats.BLOCKS[name].itemsize), np.uint8)
    halves = np.arange(count, dtype=np.uint16).view(np.float16).reshape(64, -1)
    formats.put_scales(name, raw, halves)
    for field in formats.minimums(name):
        formats.blocks_of(name, raw)[field] = halves[::-1, ::-1]
    k = count // 64 * formats.COLUMNS[name]
    out = np.empty((64, k), np.float32)
    jit.call(Kernel("derive.dequant", type=name), raw, raw.shape[1], out, 64, k)
    with np.errstate(all="ignore"):
        assert same(out, gguf_dequantize(name, raw))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half(name):
    raw = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    bf16 = (raw.astype(np.uint32) << 16).view(np.float32)
    wanted = bf16 if name == "BF16" else raw.view(np.float16).astype(np.float32)
    out = np.empty((256, 256), np.float32)
    jit.call(Kernel("derive.dequant", type=name), raw, 512, out, 256, 256)
    assert same(out, wanted)


@pytest.mark.parametrize("name", [t for t in TYPES if t + ".q" in GOLDEN])
def test_golden(name):
    """Bytes and values made by ik_llama.cpp, whose rows of IQ6_K come from the cubic behind its table."""
    q, values = GOLDEN[name + ".q"], GOLDEN[name + ".deq"]
    m = Matrix(name, *values.shape, raw=q)
    if name == "IQ6_K":
        assert (np.abs(m.dequantized() - values) <= 0.501 * np.abs(m.parts.scale)).all()
    else:
        assert (m.dequantized() == values).all()


def test_golden_has_the_types_of_ik_llama():
    assert {t for t in TYPES if t + ".q" not in GOLDEN} == {"F32", "NVFP4", "TQ1_0", "TQ2_0", *NOT_IN_FILES}


@pytest.mark.parametrize("name", ["IQ2_KT", "IQ3_KT"])
def test_gain_of_products(name):
    """Products have a factor that rows, as they are decoded, do not."""
    m = Matrix(name, 9, 512)
    y, values = ikpy_llm.matmul(m.raw, name, (9, 512), np.eye(512, dtype=np.float32)).T, m.dequantized()
    gain = quants.get(name).gain
    assert gain == {"IQ2_KT": 1.05, "IQ3_KT": 1.01}[name] and np.allclose(y, gain * values, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", TYPES)
def test_get_rows(name):
    m = Matrix(name, 19, 3 * max(quants.get(name).block, 32))
    values, ids = m.dequantized(), [18, 0, 7, 7, 3]
    for nth in (1, 2, 3):
        assert same(m.looked_up(ids, nth=nth), values[ids])
        assert same(m.looked_up(ids, 1.7, nth=nth), values[ids] * np.float32(1.7))
    assert m.looked_up([]).shape == (0, m.k)


@pytest.mark.parametrize("name", FLOAT_TYPES)
@pytest.mark.parametrize("k", [1, 7, 8, 9, 33])
def test_float_rows_of_any_width(name, k):
    m = Matrix(name, 5, k)
    assert same(m.dequantized(), gguf_dequantize(name, random_rows(name, 5, k)))
    assert same(m.looked_up([4, 1]), m.dequantized()[[4, 1]])
