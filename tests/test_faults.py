"""A model file that becomes shorter, or whose disk fails, while it is used: one error, no end of the process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_llama
import tiny_model
from conftest import KEPT, ROOT

from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.kernels.run import faults

pytestmark = pytest.mark.skipif(not faults.POSSIBLE, reason="handled on Linux, on x86-64 and AArch64")

HEAD = """
import json, os, sys
import numpy as np
from ikpy_llm import IkpyError, Model
from ikpy_llm.engine.program import program; from ikpy_llm.engine.step import weights
from ikpy_llm.kernels.run import faults
path, options = sys.argv[1], json.loads(sys.argv[2])
content, times = open(path, "rb").read(), os.stat(path)

def shorten(size=0):
    os.truncate(path, size)

def fail():  # a disk that fails for a moment leaves size and time
    shorten()
    look()
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

def look():
    pass

said = []
def error_of(call):
    try:
        call()
    except IkpyError as error:
        said.append(f"{type(error).__name__}: {error}")
    else:
        said.append("")
"""

GENERATING = """
program.PART, tokens = 1, list(range(40))
model = Model.load(path, n_ctx=256, **options)
expected = model.logits(tokens)
def strike(done, total, name):
    if done > 10:
        shorten()
s = model.session
s.rewind(0)
s.progress = strike
error_of(lambda: s.eval(tokens))
s.progress = None
assert s.position == 0
error_of(lambda: s.eval([1]))
error_of(lambda: list(model.generate("the end", n_predict=3)))
with open(path, "wb") as file:  # another model, of the file that is whole again
    file.write(content)
error_of(lambda: s.eval([1]))
with Model.load(path, n_ctx=256, **options) as other:
    assert (other.logits(tokens) == expected).all()
model.close()
"""

UNCHECKED = """
program.PART = 1
model = Model.load(path, n_ctx=256, **options)
s = model.session
check, s.file.check_unchanged = s.file.check_unchanged, lambda: None
s.progress = lambda done, total, name: shorten() if done > 10 else None
s.eval(list(range(40)))
said.append(str(s.file._parts[0]._watched[faults.LOST]))
error_of(check)
"""

DISK = """
model = Model.load(path, n_ctx=256, **options)
s = model.session
data = s.file.tensors["token_embd.weight"].data
def look():
    assert not data.any()  # Python reads zeros
fail()
error_of(lambda: s.eval([1]))
model.close()
"""

WEAVING = """
weights.BATCH = 1
def strike(done, total, name):
    if name.endswith("weight") and 0 < done < total:
        shorten()
error_of(lambda: Model.load(path, n_ctx=256, progress=strike, **options))
"""


def run(code, path, **options):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "faulthandler", "-c", HEAD + code + "print(json.dumps(said))"]
    command += [str(path), json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


CHANGED = "the model file changed while it was in use; load it again"
LOST = "parts of the model file cannot be read from its disk; load it again"


@pytest.mark.parametrize("repack", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_shorter_while_computing(tmp_path, repack, threads):
    path = tiny_model.write(tmp_path / "m.gguf")
    said = run(GENERATING, path, repack=repack, threads=threads)
    assert said == [f"ModelFileError: {path}: {CHANGED}"] * 4


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("repack", [True, False])
def test_what_a_step_reads(tmp_path, repack, threads):
    """Without a look at the file the step goes on: with zeros, or woven with what is in memory since the load."""
    path = tiny_model.write(tmp_path / "m.gguf")
    said = run(UNCHECKED, path, repack=repack, threads=threads)
    assert said == ["0" if repack else "1", f"ModelFileError: {path}: {CHANGED}"]


@pytest.mark.parametrize("repack", [True, False])
def test_a_disk_that_fails(tmp_path, repack):
    path = tiny_model.write(tmp_path / "m.gguf")
    assert run(DISK, path, repack=repack, threads=1) == [f"ModelFileError: {path}: {LOST}"]


@pytest.mark.parametrize("pp_requant", [False, True])
def test_shorter_while_weaving(tmp_path, pp_requant):
    path = tiny_llama.write(tmp_path / "m.gguf", types=("Q4_0",))
    said = run(WEAVING, path, repack=True, pp_requant=pp_requant, threads=2)
    assert said == [f"ModelFileError: {path}: {CHANGED}"]


def test_interleaved_tensors(tmp_path):
    """Taken apart when they are first used."""
    from test_weave import interleaved_file

    path = interleaved_file(tmp_path, "Q4_K_R4")[0]
    said = run(WEAVING, path, repack=True, threads=2)
    assert said == [f"ModelFileError: {path}: {CHANGED}"]


OTHER = """
import mmap, sys
from ikpy_llm import Model
path = sys.argv[1]
Model.load(path, n_ctx=256, threads=1).logits([1])
with open(path + ".other", "w+b") as file:
    file.write(bytes(9999))
    file.flush()
    other = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    print(other[0])
"""


@pytest.mark.parametrize("words", [[], ["-X", "faulthandler"]], ids=" ".join)
def test_what_else_was_mapped(tmp_path, words):
    """Other files are not ours to watch: what was there before us is what happens."""
    path = tiny_model.write(tmp_path / "m.gguf")
    command = [sys.executable, *words, "-c", OTHER, str(path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGBUS
    assert (b"Fatal Python error: Bus error" in done.stderr) == bool(words)


def test_what_is_watched_is_forgotten(tmp_path):
    path, before = tiny_model.write(tmp_path / "m.gguf"), len(faults._free)
    file = open_gguf(path)
    data = file.tensors["token_embd.weight"].data
    assert len(faults._free) == before - 1
    file.close()
    assert len(faults._free) == before - 1 and data.any()  # as long as somebody has a view
    del data
    assert len(faults._free) == before


def test_more_files_than_can_be_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "_free", [])
    file = open_gguf(tiny_model.write(tmp_path / "m.gguf"))
    file.check_unchanged()
    file.close()
    assert faults._free == []


# --- the command line ---


def start(*words):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IKPY_", "LLAMA_ARG_")) or k in KEPT}
    env |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ikpy_llm", *map(str, words)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("words", [["-no-rtr", "-t", "2"], ["-no-rtr", "-t", "1"], ["-rtr"]], ids=" ".join)
@pytest.mark.parametrize("share", [0, 0.6])
def test_shorter_while_generating(tmp_path, words, share):
    path = tiny_model.write(tmp_path / "m.gguf")
    endless = ["-n", "1000000", "--ignore-eos", "--keep", "0", "-c", "256", "--temp", "0"]
    process = start("run", "-m", path, "-p", "the end of it", *endless, *words)
    try:
        assert len(process.stdout.read(60)) == 60
        time.sleep(0.05)
        os.truncate(path, int(share * path.stat().st_size))
        process.stdout.read()
        err = process.stderr.read().decode()
        assert process.wait(60) == 1, err
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert err.splitlines()[-1] == f"error: {path}: {CHANGED}"
    assert "Traceback" not in err and "Fatal" not in err and err.count("error") == 1


LOADING = """
import os, sys
from ikpy_llm import cli
from ikpy_llm.engine.file import gguf, header as gguf_header; from ikpy_llm.engine.step import weights
path, where = sys.argv[1:]
if where == "header":
    real = gguf_header.Header._check_magic
    def strike(self):
        gguf_header.FIRST_READ = 100
        self._buf = b""
        real(self)
        os.truncate(path, 120)
    gguf_header.Header._check_magic, gguf_header.FIRST_READ = strike, 100
elif where == "mapped":
    real = gguf.open_gguf
    from ikpy_llm import api
    def strike(path):
        file = real(path)
        os.truncate(path, 120)
        return file
    api.open_gguf = strike
else:
    real = weights.Weights._run
    def strike(*words):
        os.truncate(path, 120)
        real(*words)
    weights.Weights._run = strike
sys.exit(cli.main(["run", "-m", path, "-p", "the end", "-n", "2", "-rtr"], "ikpy"))
"""


@pytest.mark.parametrize(
    ("where", "message"),
    [("header", "the file became shorter while it was read"), ("mapped", CHANGED), ("woven", CHANGED)],
)
def test_shorter_while_loading(tmp_path, where, message):
    path = tiny_model.write(tmp_path / "m.gguf")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "faulthandler", "-c", LOADING, str(path), where]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"error: {path}: {message}"), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run", "bench", "sweep-bench"])
def test_only_regular_files_are_models(ikpy, tmp_path, command):
    """One line, and nothing is waited for."""
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "link.gguf").symlink_to("fifo.gguf")
    words = ["-p", "x"] if command == "run" else []
    for path, what in (
        (tmp_path / "fifo.gguf", "a FIFO"),
        (tmp_path / "link.gguf", "a FIFO"),
        (tmp_path / "folder.gguf", "a directory"),
        ("/dev/zero", "a character device"),
        ("/dev/null", "a character device"),
    ):
        done = ikpy(command, "-m", path, *words, timeout=100)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and len(errors) == 1, done.stderr
        assert errors[0].endswith(f"{path}: Is {what}, not a regular file") and "Traceback" not in done.stderr
