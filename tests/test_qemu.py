"""AArch64 under qemu-user: the CPU's features are found, its kernels are compiled, and a model has the logits that the
emulated target has here, to the bit.

IKPY_QEMU names a Python for AArch64 that runs here; tests/qemu_aarch64.sh makes one. Other tests run with it too:
`QEMU_CPU=neoverse-n1 $IKPY_QEMU -m pytest tests/test_simd.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model

HERE = Path(__file__).parent
QEMU = os.environ.get("IKPY_QEMU", "")
CODE = """
import hashlib, json, sys
from ikpy_llm.kernels.simd import target
from sessions import session
found = {"target": target.current().name, "features": sorted({"dotprod", "i8mm"} & target.current().isa)}
for kv in "f16", "q8_0":
    with session(sys.argv[1], cache_type_k=kv, cache_type_v=kv) as s:
        found[kv] = hashlib.sha256(s.eval(list(range(40)), all_logits=True).tobytes()).hexdigest()
print(json.dumps(found))
"""


def run(python, *words, **more):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("IKPY_TARGET", "IKPY_EMULATE"))}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE)))} | more
    return subprocess.run([python, *words], env=env, capture_output=True, text=True, timeout=3000)


@pytest.mark.slow
@pytest.mark.skipif(not QEMU, reason="IKPY_QEMU names no Python for AArch64; tests/qemu_aarch64.sh makes one")
@pytest.mark.parametrize(
    ("cpu", "features"),
    [("neoverse-n1", ["dotprod"]), ("max", ["dotprod", "i8mm"]), ("cortex-a72", [])],
)
def test_a_model(cpu, features, tmp_path):
    model = str(tiny_model.write(tmp_path / "tiny.gguf"))
    target = "neon" if features else "generic"
    there = run(QEMU, "-c", CODE, model, QEMU_CPU=cpu, IKPY_CACHE=str(tmp_path / "cache"))
    assert there.returncode == 0, there.stderr[-2000:]
    emulated = {"IKPY_TARGET": target} | ({"IKPY_EMULATE": "1"} if features else {})
    here = run(sys.executable, "-c", CODE, model, **emulated, IKPY_TARGET_I8MM="1" * ("i8mm" in features))
    assert here.returncode == 0, here.stderr[-2000:]
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert json.loads(there.stdout)["features"] == features
