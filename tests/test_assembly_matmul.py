"""Machine code of the matrix kernels, cross-compiled where this CPU is another: dot products present, no spills."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ikpy_llm.kernels import quants

ROOT = Path(__file__).parents[1]
# One type for each inner loop: decoding is not part of it, the kind of minimums and the width of sub-blocks are.
LOOPS = {(q.mins, q.sub): q.name for q in map(quants.get, quants.names()) if not q.is_float}
TYPES = sorted(LOOPS.values())
DOT = r"\b(?:vpdpbusd|vpmaddubsw|vpmaddwd|[su]+dot|vfmadd\w+|fmla)\b"
CODE = """
import json, sys
from ikpy_llm.kernels.compiler import jit
print(json.dumps([jit.assembly(jit.Kernel.parse(text)) for text in json.loads(sys.argv[1])]))
"""


def assembly(target, kernels, **env):
    """{(path, type): assembly} for a target; kernels is a list of (path, parameters)."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IKPY_TARGET": target, "IKPY_EMULATE": "", **env}
    texts = json.dumps([json.dumps(k) for k in kernels])
    done = subprocess.run(
        [sys.executable, "-c", CODE, texts], capture_output=True, text=True, env=env, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {(path, p["type"]): text for (path, p), text in zip(kernels, json.loads(done.stdout), strict=True)}


PANEL = 90 * 64  # bytes of a decoded panel: 64 vectors of codes, 16 of scales, 8 of minimums, their unit, d


def count(text, instruction):
    return len(re.findall(rf"\b{instruction}\b", text))


def hot_block(text):
    """Lines of the basic block with most products."""
    blocks = re.split(r"^[.\w$]+:.*$", text, flags=re.M)
    return max(blocks, key=lambda b: count(b, DOT)).splitlines()


def spills(lines, register):
    """Lines that keep a vector at a fixed place of the stack. The buffer of decoded weights is there too: its reads are
    indexed, as in 640(%rsp,%r8), or come once per panel, a decoded panel apart."""
    found = [(line.strip(), re.search(r"(-?\d*)\((?:%rsp|%rbp)\)", line)) for line in lines if register in line]
    at = {line: int(place[1] or 0) for line, place in found if place}
    reads = {place for line, place in at.items() if not line.endswith(")")}
    panels = {place for place in reads if {place - PANEL, place + PANEL} & reads}
    return [line for line, place in at.items() if place not in panels]


@pytest.fixture(scope="module")
def avx512():
    kernels = [("derive.gemm", {"type": t}) for t in TYPES]
    return assembly("avx512", kernels + [("derive.gemv", {"type": t, "n": 1}) for t in TYPES])


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_avx512_gemm(name, avx512):
    """8 products of whole registers per 32 columns and accumulator, in one loop, nothing put aside."""
    hot = hot_block(avx512["derive.gemm", name])
    products = [line for line in hot if "vpdpbusd" in line]
    assert len(products) >= 64 and all("zmm" in line for line in products)
    assert count("\n".join(hot), "vpdpbusd") == count(avx512["derive.gemm", name], "vpdpbusd"), (
        "another copy of the loop"
    )
    assert not spills(hot, "zmm")
    assert not [line for line in hot if "call" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_avx512_gemv(name, avx512):
    hot = hot_block(avx512["derive.gemv", name])
    assert sum("vpdpbusd" in line and "zmm" in line for line in hot) == 8
    assert not spills(hot, "zmm")


@pytest.mark.slow
def test_neon():
    text = assembly("neon", [("derive.gemm", {"type": t}) for t in ("Q4_0", "Q8_0", "F16")])
    for name in ("Q4_0", "Q8_0"):
        hot = hot_block(text["derive.gemm", name])
        assert sum(bool(re.search(r"\bsdot\b", line)) for line in hot) >= 64
        assert sum(bool(re.search(r"\bfmla\b", line)) for line in hot) >= 8
    floats = hot_block(text["derive.gemm", "F16"])  # 2 columns of 3 panels with 8 activations
    assert sum("fmla" in line for line in floats) == 48
    assert not [line for line in floats if re.search(r"\bsp\b", line)]
    i8mm = assembly("neon", [("derive.gemv", {"type": "Q8_0", "n": 1})], IKPY_TARGET_I8MM="1")
    assert count(i8mm["derive.gemv", "Q8_0"], "usdot") == 8


@pytest.mark.slow
def test_avx2_without_vnni():
    """8 products of 4-bit codes are added in 16 bits before they are widened, 4 of 6-bit codes, whose sums start where
    they are those of -32 to 31; codes above 127 as sizes and signs."""
    names = ("Q4_0", "Q6_0", "Q6_K", "Q8_0", "BF16")
    text = assembly("avx2", [("derive.gemm", {"type": t}) for t in names], IKPY_TARGET_NO_VNNI="1")
    hot = {name: "\n".join(hot_block(text["derive.gemm", name])) for name in names[:-1]}
    found = {name: (count(lines, "vpmaddubsw"), count(lines, "vpmaddwd")) for name, lines in hot.items()}
    assert found == {"Q4_0": (64, 8), "Q6_0": (64, 16), "Q6_K": (64, 16), "Q8_0": (64, 64)}
    assert count(hot["Q8_0"], "vpsignb") == 64
    floats = hot_block(text["derive.gemm", "BF16"])  # 12 sums, 3 weights and an activation: all registers
    assert (sum("vfmadd" in x for x in floats), sum("vbroadcastss" in x for x in floats)) == (24, 8)
    assert not spills(floats, "ymm") and not [x for x in floats if "vpmovzx" in x]
    assert not re.search(r"zmm|vpdpbusd", "".join(text.values()))
