"""A mistake in a type's file is one line: which file, which line, what is missing; other types are not harmed by it.

The mistakes are made in a copy of the package.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# file -> (text, what stands there instead, the line of the message, what it says)
IN_A_DECLARATION = {
    "q4_0": ('u8[16]"', 'u8(16)"', 7, "Q4_0: qs='u8(16)': a field is spelled f16 or u8[16]"),
    "q4_1": ("u8[16]", "u8[15]", 7, "Q4_1: declared 19 bytes per 32 columns, GGUF has 20 per 32"),
    "q5_0": ("bits=5", "bitz=5", 8, "quant() missing 1 required keyword-only argument: 'bits'"),
    "q5_1": ("def floor", "def flor", 8, "Q5_1: floor(b, j) is missing, which mins='f16' needs"),
    "q8_0": ("def codes", "def code", 7, "Q8_0: codes(b, j) is missing"),
    "q4_k": (' dmin="f16",', ' min="f16",', 8, "Q4_K: dmin is missing, a field or a function"),
    "q5_k": ("class Q5_K", "class Q5_KK", 8, "Q5_KK has no row in quants/table.py: name, id, block, bytes"),
    "q6_k": ("from ..base import quant", "", 7, "NameError: name 'quant' is not defined"),
    "q2_k": ("return", "return return", None, "invalid syntax"),
    "q3_k": ("def scale(", "def scales(", 8, "Q3_K: scale(b, j) is missing"),
    "bf16": ('plain("BF16"', 'plain("BF17"', 5, "BF17 has no row in quants/table.py"),
    "f32": ("F32 = ", "F_32 = ", 1, "it declares no type F32"),
}
# mistakes that show when a kernel is made of it
IN_A_FUNCTION = {
    "q4_0": ("nibbles32(b.qs)", "nibbles32(b.sq)", "q4_0.py:10: Unknown attribute 'sq' of type Block(Q4_0)"),
    "q5_0": ("simd.bits32", "simd.bit32", "q5_0.py:11: AttributeError: simd has no 'bit32'"),
    "q5_1": ("-b.m", "-bb.m", "q5_1.py:17: Q5_1.floor uses bb, which is defined nowhere"),
    "q8_0": (
        "return b.d",
        "return [b.d] + b.d",
        "No implementation of function Function(<built-in function add>) found",
    ),
}
SCRIPT = """
import json, logging, sys
logging.basicConfig(format="%(message)s")
from ikpy_llm import quant_types
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.compiler import jit; from ikpy_llm.kernels import quants
jit.keep_compilers = True
said = {}
for name in quants.names():
    try:
        if sys.argv[1:] == ["compile"]:
            name in ("Q4_0", "Q5_0", "Q5_1", "Q8_0") and jit.load([jit.Kernel("derive.dequant", type=name)])
        else:
            quants.get(name)
    except IkpyError as error:
        said[name.lower()] = str(error)
jit.release_compilers()
print(json.dumps([said, [row["name"] for row in quant_types()] if sys.argv[1:] == [] else None]))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package; returns the folder of its types."""
    shutil.copytree(ROOT / "ikpy_llm", tmp_path / "ikpy_llm", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "ikpy_llm" / "kernels" / "quants" / "types"


def change(folder, file, old, new):
    path = folder / f"{file}.py"
    text = path.read_text(encoding="utf-8")
    assert old in text, (file, old)
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def python(package, *words):
    env = {**os.environ, "PYTHONPATH": str(package.parents[3]), "IKPY_CACHE": str(package.parents[3] / "cache")}
    done = subprocess.run([sys.executable, "-P", *words], env=env, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_file_without_a_row(package):
    """The type is said to be missing in the table, and all others are listed as before."""
    text = (package / "q4_0.py").read_text(encoding="utf-8")
    (package / "q9_0.py").write_text(text.replace("Q4_0", "Q9_0"), encoding="utf-8")
    done = python(package, "-c", SCRIPT)
    said, listed = json.loads(done.stdout)
    expected = (
        "ikpy_llm/kernels/quants/types/q9_0.py:7: Q9_0 has no row in quants/table.py: name, id, block, bytes, "
        "row_meta, interleave"
    )
    assert said == {"q9_0": expected} and expected in done.stderr.splitlines()
    assert len(listed) == 77 and "Q9_0" not in listed
    for words in (["--type", "Q9_0"], ["q9_0"]):
        done = python(package, "-m", "ikpy_llm", "kernels", "show", "dequant", *words)
        assert done.returncode == 1 and done.stderr == f"error: {expected}\n", done.stderr


def test_mistakes_in_declarations(package):
    for file, (old, new, *_) in IN_A_DECLARATION.items():
        change(package, file, old, new)
    done = python(package, "-c", SCRIPT)
    said, listed = json.loads(done.stdout)
    assert said.keys() == IN_A_DECLARATION.keys()
    for file, (*_, line, text) in IN_A_DECLARATION.items():
        assert said[file].startswith(f"ikpy_llm/kernels/quants/types/{file}.py:{line or ''}"), said[file]
        assert text in said[file] and "\n" not in said[file], said[file]
    assert not {"Q4_0", "F32"} & set(listed) and {"Q6_0", "IQ4_XS"} <= set(listed)


@pytest.mark.slow
def test_mistakes_in_functions(package):
    for file, (old, new, _) in IN_A_FUNCTION.items():
        change(package, file, old, new)
    said, _ = json.loads(python(package, "-c", SCRIPT, "compile").stdout)
    assert said.keys() == IN_A_FUNCTION.keys()
    for file, (*_, text) in IN_A_FUNCTION.items():
        assert said[file].startswith(f"derive.dequant(type={file.upper()}): ikpy_llm/kernels/"), said[file]
        assert text in said[file] and "\n" not in said[file], said[file]
    done = python(package, "-m", "ikpy_llm", "kernels", "show", "dequant", "--type", "Q4_0")
    assert done.returncode == 1
    assert (
        done.stderr == f"error: derive.dequant(type=Q4_0): ikpy_llm/kernels/quants/types/{IN_A_FUNCTION['q4_0'][2]}\n"
    )
