"""Kernels of CPUs that we may not be on, run emulated: some tests of other files, each target in a process of its own.

`IKPY_TARGET=avx512 IKPY_EMULATE=1 pytest` runs any others so. Single operations are in test_simd.py, matrix products in
test_matmul.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Accuracy of attention on an 8-bit cache, and of a model's logits.
ACCURACY = "head_sizes and 128 or mean_error or test_model and q8_0"
CHOSEN = {  # switches, files and a choice of their tests
    "avx512": ({}, ["test_kv_types.py", "test_attention.py", "-k", ACCURACY + " or nan_input"]),
    "avx2": ({}, ["test_kv_types.py", "-k", ACCURACY]),
    "avx2 without VNNI": ({"IKPY_TARGET_NO_VNNI": "1"}, ["test_kv_types.py", "-k", ACCURACY]),
    "neon": ({}, ["test_kv_types.py", "-k", ACCURACY]),
    "neon with i8mm": ({"IKPY_TARGET_I8MM": "1"}, ["test_kv_types.py", "-k", ACCURACY]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_emulated(name):
    switches, words = CHOSEN[name]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    env = {**os.environ, "IKPY_TARGET": name.split()[0], "IKPY_EMULATE": "1", "PYTHONPATH": str(HERE.parent)} | switches
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\b[1-9] passed, \d+ deselected", done.stdout)
