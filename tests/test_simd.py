"""The cases of simd_cases.py on every target this CPU runs, one process per target."""

import json
import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from ikpy_llm.kernels.simd import target

ROOT = Path(__file__).parents[1]
VARIANTS = [(name, {}) for name in target.runnable()]
if "avx2" in target.runnable():
    VARIANTS.append(("avx2", {"IKPY_TARGET_NO_VNNI": "1"}))
VARIANTS += [(name, {"IKPY_EMULATE": "1"}) for name in ("avx512", "neon")]
VARIANTS.append(("neon", {"IKPY_EMULATE": "1", "IKPY_TARGET_I8MM": "1"}))


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=lambda v: v if isinstance(v, str) else " ".join(v) or "-")
def test_every_operation(name, more):
    env = {**os.environ, "IKPY_TARGET": name, "IKPY_EMULATE": "", "PYTHONPATH": str(ROOT), **more}
    script = Path(__file__).with_name("simd_cases.py")
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["target"] == name + " (emulated)" * ("IKPY_EMULATE" in more)
    assert not ("IKPY_TARGET_NO_VNNI" in more and "avxvnni" in report["isa"])
    assert "i8mm" in report["isa"] or "IKPY_TARGET_I8MM" not in more
    failed = {case: error for case, error in report["results"].items() if error}
    assert not failed, "\n\n".join(f"{case}: {error}" for case, error in failed.items())
    assert len(report["results"]) > 40
    assert not report["unused"], "operations without a case"


def test_unknown_target_is_refused():
    code = "from ikpy_llm.kernels.simd import target; target.current()"
    env = {**os.environ, "IKPY_TARGET": "mmx", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "IKPY_TARGET='mmx': accepted are avx512, avx2, neon, generic" in done.stderr


@pytest.mark.parametrize("name", ["avx2", "generic"])
def test_hidden_features_stay_unused(name, monkeypatch):
    """A hypervisor shows a Zen 4 without AVX-512: the CPU's model name must not bring it back."""
    host = {"sse2": True, "ssse3": True, "avx2": True, "fma": True, "f16c": True, "bmi2": True, "gfni": False}
    host |= dict.fromkeys(("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "avx512vbmi"), False)
    monkeypatch.setattr(target, "_host", lambda: ("x86_64-unknown-linux-gnu", "znver4", host))
    monkeypatch.setattr(target.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("IKPY_TARGET", name)
    assert target.runnable() == ["avx2", "generic"]
    found = target.current.__wrapped__()
    assert found.cpu == "znver4" and found.here
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(found.triple).create_target_machine(cpu=found.cpu, features=found.features)
    module = llvm.parse_assembly(
        "define void @f(<16 x float>* %p) {\n"
        "  %x = load <16 x float>, <16 x float>* %p\n"
        "  %y = fadd <16 x float> %x, %x\n"
        "  store <16 x float> %y, <16 x float>* %p\n"
        "  ret void\n}"
    )
    text = machine.emit_assembly(module)
    assert "ymm" in text and "zmm" not in text
