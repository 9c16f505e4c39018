"""The machine code of kernels, for CPUs this machine has and for others: wanted instructions are there, tiles stay in
registers.

Each target is compiled in a process of its own, which prints the assembly of the kernels below.
"""

import functools
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ikpy_llm.kernels.simd import target

ROOT = Path(__file__).parents[1]
X86 = platform.machine().lower() in ("x86_64", "amd64")
SCRIPT = """
import json
from simd_harness import define
from ikpy_llm.kernels.compiler import jit; from ikpy_llm.kernels import simd
U8, I8V, I32V, F32, SIZE = simd.U8, simd.I8V, simd.I32V, simd.F32, 4 * simd.LANES

def loop(n_columns, dot):
    def kernel(w, x, y, n, ith, nth):
        acc = simd.tile_zeros(I32V, n_columns)
        for k in range(n):
            acc = dot(acc, simd.load(U8, w + k * SIZE), simd.tile_splat4(I8V, n_columns, x + k * 4, 4096))
        simd.tile_store(y, SIZE, acc)
    return kernel

def one_product(w, x, y, ith, nth):
    simd.store(y, simd.dot4_small(simd.load(I32V, y), simd.load(U8, w), simd.load(I8V, x)))

specs = {
    "tile": define("tile", loop(12, simd.dot4)),
    "small": define("small", one_product),
    "attend": jit.Kernel("attention.flash.attend", k_dim=64, v_dim=64),
    "add": jit.Kernel("rows.rowwise.add"),
    "work": jit.Kernel("run.runner.work"),
}
if simd.TARGET.name == "avx512":
    specs["quantized"] = jit.Kernel("attention.flash.attend", k_dim=64, v_dim=64, k_type="q8_0", v_type="q8_0")
print(json.dumps({name: jit.assembly(spec) for name, spec in specs.items()}))
"""


@functools.cache
def assembly_of(name, *switches):
    """Kernel -> assembly for a target, whether it runs here or not."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    env = {**os.environ, "IKPY_TARGET": name, "IKPY_EMULATE": "", "PYTHONPATH": path, **dict.fromkeys(switches, "1")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def loops(text):
    """Bodies of the loops, from label to jump back, as lists of lines; outer loops hold their inner ones."""
    lines, labels, found = text.splitlines(), {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"(\.?\w+):", line):
            labels[label[1]] = i
        jump = re.match(r"\t(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\t(?:.*, )?(\.?\w+)$", line)
        if jump and jump[1] in labels:
            found.append(lines[labels[jump[1]] : i + 1])
    return found


def stack_vectors(lines):
    """Vector loads and stores on the stack."""
    return [line for line in lines if re.search(r"\bv?mov[au]p[sd]\b.*\(%rsp|%[yz]mm.*\(%rsp|\bq\d+.*\[sp", line)]


@pytest.mark.skipif(not X86, reason="x86-64 code")
def test_avx512_tile():
    """Twelve columns: twelve vpdpbusd per step, activations broadcast by the instruction itself, sums in registers."""
    text = assembly_of("avx512")["tile"]
    dots = re.findall(r"\tvpdpbusd\t.*", text)
    assert len(dots) >= 12
    assert all("{1to16}" in d for d in dots)
    assert not stack_vectors(text.splitlines())


@pytest.mark.skipif(not X86, reason="x86-64 code")
@pytest.mark.skipif("avx2" not in target.runnable(), reason="needs AVX2")
def test_avx2_without_vnni():
    small = assembly_of("avx2", "IKPY_TARGET_NO_VNNI")["small"]
    assert "vpmaddubsw" in small
    assert "vpmaddwd" in small
    assert "vpdpbusd" not in small
    assert "%zmm" not in small


def test_neon():
    code = assembly_of("neon")
    assert "sdot" in code["small"]
    assert "usdot" not in code["small"]
    assert "sdot" in code["tile"]
    assert re.search(r"fadd\tv\d+\.4s", code["add"])


def test_neon_with_i8mm():
    code = assembly_of("neon", "IKPY_TARGET_I8MM")
    assert "usdot" in code["small"]
    assert "usdot" in code["tile"]


@pytest.mark.parametrize(
    ("name", "instruction"),
    [("avx512", "vfmadd231ps"), ("avx2", "vfmadd231ps"), ("neon", "fmla")],
)
def test_attention_keeps_its_sums_in_registers(name, instruction):
    if name != "neon" and not X86:
        pytest.skip("x86-64 code")
    # the loops over d and over positions convert K and V from f16; without loops inside they have one jump
    found = [body for body in loops(assembly_of(name)["attend"]) if is_product(body, instruction)]
    assert len(found) >= 4, "scores and sums, of full and of narrow tiles"
    for body in found:
        assert not stack_vectors(body), "\n".join(body)


@pytest.mark.skipif(not X86, reason="x86-64 code")
def test_integer_attention_keeps_its_sums_in_registers():
    """By vpdpbusd: scores, sums over values with weights and with what is left of them; of full and of narrow tiles."""
    found = loops(assembly_of("avx512")["quantized"])
    texts = ["\n".join(body) for body in found]
    inner = [body for body, text in zip(found, texts, strict=True) if not any(t != text and t in text for t in texts)]
    bodies = [body for body in inner if sum("vpdpbusd" in line for line in body) >= 6]
    assert len(bodies) >= 6
    for body in bodies:
        assert not stack_vectors(body), "\n".join(body)


@pytest.mark.parametrize(
    ("name", "instruction"), [("avx512", r"\tpause\b"), ("avx2", r"\tpause\b"), ("neon", r"\t(hint|yield|isb)\b")]
)
def test_threads_that_wait_pause(name, instruction):
    """In the loop of a worker that waits for a program and in that of a barrier."""
    if name != "neon" and not X86:
        pytest.skip("x86-64 code")
    assert len(re.findall(instruction, assembly_of(name)["work"])) >= 2


def is_product(body, instruction):
    conversions = sum("cvtph2ps" in line or "fcvtl" in line for line in body)
    return len(body) < 70 and conversions >= 2 and sum(instruction in line for line in body) >= 6
