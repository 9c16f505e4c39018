"""The object cache and its compiler processes: cold and warm starts, damaged entries, several processes,
errors that say what to do.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.compiler.jit import JitError, Kernel
from ikpy_llm.kernels.simd import target

ROOT = Path(__file__).parents[1]
SPECS = [Kernel("rows.rowwise.add"), Kernel("rows.rowwise.add_bias"), Kernel("rows.rowwise.last_rows")]
LOAD = """
import json, logging, sys
from ikpy_llm.kernels.compiler import jit
logging.basicConfig(level=logging.WARNING)
specs, steps = [jit.Kernel(n) for n in ("rows.rowwise.add", "rows.rowwise.add_bias", "rows.rowwise.last_rows")], []
addresses = jit.load(specs, lambda *step: steps.append(step))
import numpy as np
x, b, y = np.arange(8, dtype="f4"), np.ones(8, "f4"), np.zeros(8, "f4")
jit.call(specs[0], x, b, y, 8, np.array([1, 0, 1, 0]))
print(json.dumps({"steps": steps, "sum": y.tolist(), "numba": "numba" in sys.modules, "n":
len(set(addresses.values()))}))
"""


def start(cache, code=LOAD, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IKPY_CACHE": str(cache), **env}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out), err


def entries(cache):
    return sorted((Path(cache) / "kernels").iterdir())


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache that a process filled, and what the process said."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, *finish(start(cache))


@pytest.fixture
def cache(filled, tmp_path):
    """A copy of the filled cache that a test may damage."""
    return shutil.copytree(filled[0], tmp_path / "cache")


def test_cold(filled):
    """Children compile; the process itself never imports Numba. Progress counts up to all kernels."""
    cache, said, _ = filled
    assert said["sum"] == list(range(1, 9))
    assert not said["numba"]
    assert said["n"] == 3
    assert [s[:2] for s in said["steps"]] == [[i, 3] for i in range(4)]
    assert {s[2] for s in said["steps"]} == {"", *map(str, SPECS)}
    assert len(entries(cache)) == 3


def test_warm(filled):
    said, err = finish(start(filled[0]))
    assert said["sum"] == list(range(1, 9))
    assert said["steps"] == []
    assert not said["numba"]
    assert err == ""


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "text", "other kernel", "folder"])
def test_damaged_entry_is_compiled_again(cache, damage):
    path, other, _ = entries(cache)
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 16
    path.unlink()
    if damage == "folder":
        path.mkdir()
        process = start(cache)
        assert "JitError" in process.communicate(timeout=120)[1]
        return
    bad = {"empty": b"", "half": data[: len(data) // 2], "flipped": bytes(flipped), "text": b"not an object file" * 99}
    path.write_bytes(bad.get(damage, other.read_bytes()))
    said, err = finish(start(cache))
    assert said["sum"] == list(range(1, 9))
    assert len(said["steps"]) == 2
    assert path.name in err
    symbol, code = jit.read_object(path)
    assert symbol == jit.symbol_of(path)
    assert code.startswith(b"\x7fELF") or sys.platform != "linux"
    assert finish(start(cache))[0]["steps"] == []


def test_two_processes_at_once(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    assert all(finish(p)[0]["sum"] == list(range(1, 9)) for p in both)
    assert len(entries(tmp_path)) == 3, "temporary files stay behind"
    assert all(jit.read_object(p) for p in entries(tmp_path))


def test_interrupted_writer_leaves_the_old_entry(tmp_path, monkeypatch):
    path = tmp_path / "kernels" / "a.b-12.o"
    jit.write_object(path, jit.symbol_of(path), b"old")
    monkeypatch.setattr(jit.os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        jit.write_object(path, jit.symbol_of(path), b"new")
    assert jit.read_object(path) == ("ikpy.a.b.12", b"old")
    assert entries(tmp_path) == [path]


def test_unwritable_cache(tmp_path):
    (tmp_path / "file").write_text("in the way")
    process = start(tmp_path / "file")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    assert "JitError: cannot write compiled kernels to" in last
    assert "Not a directory; set IKPY_CACHE to a writable folder" in last


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Kernel("rows.heads.rope", style="spiral"), ["rows.heads.rope(style=spiral)", "accepted are norm, neox"]),
        (Kernel("rows.rowwise.nothing"), ["rows.rowwise.nothing()", "no attribute 'nothing'"]),
        (Kernel("nowhere.at_all", n=3), ["nowhere.at_all(n=3)", "ikpy_llm.kernels.nowhere"]),
        (Kernel("rows.rowwise.add", color=1), ["rows.rowwise.add(color=1)", "unexpected keyword argument"]),
    ],
    ids=lambda v: getattr(v, "path", ""),
)
def test_errors_name_the_kernel(tmp_path, monkeypatch, spec, words):
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path))
    with pytest.raises(JitError) as error:
        jit.load([spec])
    assert all(w in str(error.value) for w in words), str(error.value)


def test_a_dead_compiler_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(JitError, match=r"rows.rowwise.gated\(act=silu\): compiler process ended with code 1"):
        jit.compile_missing([Kernel("rows.rowwise.gated", act="silu")])


def key(**env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IKPY_EMULATE": "", **env}
    code = "from ikpy_llm.kernels.compiler import jit; print(jit.cache_path(jit.Kernel('rows.rowwise.add')).name)"
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_key_depends_on_target_and_parameters():
    variants = [{"IKPY_TARGET": name} for name in target.TARGETS]
    emulated = {"IKPY_TARGET": "neon", "IKPY_EMULATE": "1"}
    variants += [{"IKPY_TARGET": "neon", "IKPY_TARGET_I8MM": "1"}] * ("neon" not in target.runnable())
    variants += [emulated, {**emulated, "IKPY_TARGET_I8MM": "1"}, {**emulated, "IKPY_TARGET": "avx512"}]
    keys = [key(**v) for v in variants]
    assert len(set(keys)) == len(keys)
    assert key(IKPY_TARGET=target.runnable()[0]) == key()
    assert all(k.startswith("rows.rowwise.add-") and k.endswith(".o") for k in keys)
    names = {
        jit.cache_path(Kernel("a.b", **p)) for p in ({}, {"n": 1}, {"n": 2}, {"m": 1}, {"n": "1"}, {"n": 1, "m": 1})
    }
    assert len(names) == 6
    assert Kernel("a.b", m=1, n=2) == Kernel("a.b", n=2, m=1) == Kernel.parse(Kernel("a.b", n=2, m=1).text())


def test_key_depends_on_sources_and_versions(tmp_path, monkeypatch):
    def environment():
        return jit._environment.__wrapped__()

    package = tmp_path / "kernels"
    (package / "sub").mkdir(parents=True)
    (package / "sub" / "a.py").write_text("x = 1")
    monkeypatch.setattr(jit, "_PACKAGE", package)
    seen = [environment()]
    (package / "sub" / "a.py").write_text("x = 2")
    seen.append(environment())
    (package / "sub" / "a.py").rename(package / "sub" / "b.py")
    seen.append(environment())
    monkeypatch.setattr(jit, "_version", lambda name: b"0.0")
    seen.append(environment())
    assert len(set(seen)) == 4
    assert environment() == seen[-1]


@pytest.mark.skipif("neon" in target.runnable(), reason="neon runs here")
def test_a_foreign_target_is_not_loaded(tmp_path):
    _, err = start(tmp_path, IKPY_TARGET="neon", IKPY_EMULATE="").communicate(timeout=60)
    assert "JitError: target neon cannot run on this CPU" in err


def test_threads_may_load_at_once():
    results = []
    threads = [threading.Thread(target=lambda: results.append(jit.load(SPECS))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4
    assert all(r == results[0] for r in results)


def test_words():
    array = np.zeros(3, np.float32)
    words = jit.pack_words((-5, 1 << 40, np.int32(7), 1.5, np.float32(-2), array, True))
    floats = [0x3FC00000, 0xC0000000]
    assert list(words) == [-5, 1 << 40, 7, *floats, array.ctypes.data, 1]
