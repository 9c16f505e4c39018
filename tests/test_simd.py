"""The cases of simd_cases.py on every target this CPU runs, one process per target."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ikpy_llm.kernels.simd import target

ROOT = Path(__file__).parents[1]
VARIANTS = [(name, {}) for name in target.runnable()]
if "avx2" in target.runnable():
    VARIANTS.append(("avx2", {"IKPY_TARGET_NO_VNNI": "1"}))


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=lambda v: v if isinstance(v, str) else " ".join(v) or "-")
def test_every_operation(name, more):
    env = {**os.environ, "IKPY_TARGET": name, "PYTHONPATH": str(ROOT), **more}
    script = Path(__file__).with_name("simd_cases.py")
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["target"] == name
    assert not (more and "avxvnni" in report["isa"])
    failed = {case: error for case, error in report["results"].items() if error}
    assert not failed, "\n\n".join(f"{case}: {error}" for case, error in failed.items())
    assert len(report["results"]) > 40
    assert not report["unused"], "operations without a case"


def test_unknown_target_is_refused():
    code = "from ikpy_llm.kernels.simd import target; target.current()"
    env = {**os.environ, "IKPY_TARGET": "mmx", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "IKPY_TARGET='mmx': accepted are avx512, avx2, neon, generic" in done.stderr
