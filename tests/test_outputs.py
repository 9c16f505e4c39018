"""Files that flags name to be written: what is of another kind stays as it is, a model above all; and what is read from
stdin has a bound.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny_model
from conftest import ROOT

from ikpy_llm import Model, files
from ikpy_llm.cli.bench.plot import PICTURE
from ikpy_llm.cli.bench.profile import PROFILE
from ikpy_llm.cli.text import MOST_BYTES
from ikpy_llm.engine.cache.session_file import SESSION
from ikpy_llm.engine.step.conversation import MESSAGES
from ikpy_llm.errors import IkpyError

posix = pytest.mark.skipif(os.name != "posix", reason="devices and signals of POSIX")
STAYS = "; what is replaced is {}, an empty file, or one that is not there"
CHAT = ["-cnv", "--chat-template", "chatml"]


@pytest.fixture
def model(tmp_path):
    return tiny_model.write(tmp_path / "m.gguf")


SVG = b'<?xml version="1.0" encoding="utf-8" standalone="no"?>\n<!DOCTYPE svg PUBLIC "x"\n "y">\n<svg xmlns="z">'
OWN = {
    PROFILE: [b'{\n "generation": {\n', b'{"prompt": {}}'],
    PICTURE: [
        b"\x89PNG\r\n\x1a\n",
        SVG,
        b"<svg/>",
        b"%PDF-1.4",
        b"RIFF\n\n\n\nWEBPVP8 ",
        b"\xff\xd8\xff\xe0",
        b"\0\0\0\x20ftypavif",
    ],
    SESSION: [b"ikpy-kv\0\2\0\0\0"],
    MESSAGES: [b"[]", b'[\n {\n  "role": "user"'],
}
FOREIGN = [b"GGUF\3\0\0\0", b"some text\n", b"{}", b'{"name": 1}', b"[1, 2]", b"\0" * 5000, b"<html><svg/></html>"]


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.name)
def test_only_files_of_the_same_kind_are_replaced(tmp_path, kind):
    path, others = tmp_path / "file", [head for other in OWN if other is not kind for head in OWN[other]]
    for old in FOREIGN + others:
        path.write_bytes(old)
        what = "a model" if old.startswith(b"GGUF") else "something else"
        for refused in (lambda: files.check(path, flag="-x", kind=kind), lambda: files.write(path, b"new", kind=kind)):
            with pytest.raises(IkpyError, match=re.escape(f"{path}: Holds {what}{STAYS.format(kind.name)}")):
                refused()
        assert path.read_bytes() == old and os.listdir(tmp_path) == ["file"]
    for old in [b"", *OWN[kind]]:
        path.write_bytes(old)
        files.check(path, kind=kind)
        files.write(path, b"new", kind=kind)
        assert path.read_bytes() == b"new"


@pytest.mark.parametrize("way", ["itself", "symbolic link", "second name"])
def test_a_report_does_not_replace_the_model(ikpy, model, tmp_path, way):
    path, before = model, model.read_bytes()
    if way != "itself":
        path = tmp_path / "other"
        path.symlink_to(model) if way == "symbolic link" else path.hardlink_to(model)
    done = ikpy("run", "-m", model, "-p", "the", "-n", 2, "--profile", path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: --profile {path}: Holds a model{STAYS.format('a profile')}\n"
    assert model.read_bytes() == before


def test_messages_and_sessions_do_not_replace_the_model(ikpy, model, tmp_path):
    before, text = model.read_bytes(), f"/save {model}\n"
    done = ikpy("run", "-m", model, *CHAT, "-n", 2, input=text)
    assert f"error: {model}: Holds a model{STAYS.format('a list of messages')}\n" in done.stderr
    with Model.load(model, n_ctx=256) as m:
        m.logits([1, 2, 3])
        list(m.generate("the", n_predict=2))
        with pytest.raises(IkpyError, match="Holds a model; what is replaced is a session of ikpy"):
            m.save_session(model)
        with pytest.raises(IkpyError, match="Holds a model; what is replaced is a list of messages"):
            m.conversation(template="chatml").save(model)
    assert model.read_bytes() == before


def test_a_report_is_written_again(ikpy, model, tmp_path):
    for _ in range(2):
        done = ikpy("run", "-m", model, "-p", "the", "-n", 2, "--profile", tmp_path / "p")
        assert done.returncode == 0 and "generation" in json.loads((tmp_path / "p").read_text()), done.stderr


def test_two_outputs_with_one_name(ikpy, model, tmp_path):
    (tmp_path / "link").symlink_to("x")
    for other in (tmp_path / "x", tmp_path / "link", f"{tmp_path}/../{tmp_path.name}/x"):
        done = ikpy("run", "-m", model, "-p", "the", "-n", 2, "--profile", other, "--prompt-cache", tmp_path / "x")
        assert done.returncode == 1 and not (tmp_path / "x").exists()
        assert done.stderr == f"error: --profile and --prompt-cache name one file, {other}; each needs its own\n"


@posix
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_own_output_is_no_prompt_cache(model, tmp_path, stream):
    """A regular file under stdout would lose the text that was written into it."""
    command = [sys.executable, "-m", "ikpy_llm", "run", "-m", str(model), "-p", "the", "-n", "2", "-q"]
    for name in (f"/dev/{stream}", str(tmp_path / "out")):
        with (tmp_path / "out").open("w") as out:
            both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: out}
            done = subprocess.run([*command, "--prompt-cache", name], cwd=ROOT, text=True, timeout=300, **both)
        said = (tmp_path / "out").read_text() if stream == "stderr" else done.stderr
        assert done.returncode == 1
        assert said == (
            f"error: --prompt-cache {name}: Is where this program's own output goes, which cannot be replaced\n"
        )


@pytest.mark.parametrize("flag", ["--prompt-cache", "--profile"])
def test_a_name_that_is_empty(ikpy, model, flag):
    done = ikpy("run", "-m", model, "-p", "the", "-n", 2, flag, "")
    assert (done.returncode, done.stderr) == (1, f'error: {flag} "": The name of a file is empty\n')


# --- what comes on stdin ---


@posix
@pytest.mark.parametrize("words", [CHAT, [*CHAT, "-mli"], ["-i"], ["-if", "-p", "the"], []], ids=" ".join)
def test_a_line_without_an_end(ikpy, model, words):
    with open("/dev/zero", "rb") as endless:
        done = ikpy("run", "-m", model, "-n", 2, "-q", *words, stdin=endless, timeout=120)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "64 MiB" in said, done.stderr
    assert said.startswith("error: a message on stdin is longer" if words else "error: a prompt without -p: more than")


def test_a_message_of_lines_without_an_end(ikpy, model):
    line = "x" * ((1 << 20) - 2) + "\\\n"  # goes on in the next line
    done = ikpy("run", "-m", model, "-n", 2, "-q", *CHAT, input=line * (MOST_BYTES >> 20) + "end\n", timeout=120)
    assert done.returncode == 1
    assert done.stderr == "error: a message on stdin is longer than 64 MiB, the most that is accepted\n"


@posix
@pytest.mark.parametrize("words", [CHAT, ["-i"], []], ids=" ".join)
def test_ctrl_c_while_stdin_is_read(model, words):
    """Nobody writes into the pipe."""
    command = [sys.executable, "-m", "ikpy_llm", "run", "-m", str(model), "-n", "2", "-q", *words]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and process.poll() is None and not waits_for_stdin(process.pid):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        finally:
            process.kill()
        assert code == 130 and "Traceback" not in process.stderr.read()


def waits_for_stdin(pid: int) -> bool:
    """Does the main thread wait in read(0, ...)? After two seconds where the system does not tell."""
    try:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
            return file.read().split()[:2] == ["0", "0x0"]
    except OSError:
        time.sleep(2)
        return True


# --- addresses ---


@pytest.mark.parametrize("address", ["https://example.org/a.gguf", "file:///a//b.gguf", "https://huggingface.co/a/b"])
def test_addresses_are_shown_as_they_are_given(ikpy, address):
    said = f"'{address}' is an address; the path of a GGUF file is accepted"
    with pytest.raises(IkpyError, match=f"^{re.escape(said)}"):
        Model.load(address)
    for command in (["run", "-p", "x"], ["bench"], ["sweep-bench"]):
        done = ikpy(*command, "-m", address)
        assert done.returncode == 1 and done.stderr.startswith(f"error: -m {said}"), done.stderr
        assert done.stderr.count("\n") == 1
