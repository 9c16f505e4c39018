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
CHOSEN = {  # files and a choice of their tests
    "avx512": ["test_kv_types.py", "test_attention.py", "-k", "head_sizes and 12 or nan_input"],
    "neon": ["test_kv_types.py", "-k", "head_sizes and 12"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_emulated(name):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *CHOSEN[name]]
    env = {**os.environ, "IKPY_TARGET": name, "IKPY_EMULATE": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\b[1-9] passed, \d+ deselected", done.stdout)
