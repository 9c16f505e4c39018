"""A key that is held: several Ctrl-C within moments end a command as one does, quietly, with nothing left behind."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import tiny_chat

from ikpy_llm.cli import interrupt

ROOT = Path(__file__).parents[1]
# The start of Python itself is not ours: the signals begin when the command does.
CODE = "from ikpy_llm import cli; cli.interrupt.remember(); print('ready', flush=True); cli.script('ikpy')"
TEMPLATE = "{% for m in messages %}<|u|>{{ m.content }}{% endfor %}<|a|> "  # unknown: rendered by a child process
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")


@pytest.fixture(scope="module")
def path(folder):
    return tiny_chat.write(folder / "m.gguf")


def marked(mark: str) -> list[int]:
    """Processes whose environment has a text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:  # gone, or another user's
            continue
    return found


@pytest.mark.parametrize("seed", range(16))
def test_a_held_key(path, tmp_path, seed):
    choice = random.Random(seed)
    words = ["run", "-m", path, "-p", "AB", "-n", "100000", "--keep", "1", "--ignore-eos", "-c", "256"]
    words += (
        ["-cnv", "-st", "-c", "200000", "--chat-template", TEMPLATE]
        if seed % 2
        else ["--prompt-cache", tmp_path / "kept"]
    )
    mark, temporary = uuid.uuid4().hex, tmp_path / "tmp"
    temporary.mkdir()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "MARK": mark, "IKPY_THREADS": "1"}
    # Where the tests run as a shell's background job SIGINT is ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [sys.executable, "-c", CODE, *map(str, words)]
        process = subprocess.Popen(command, env=env, stdin=-3, stdout=-1, stderr=-1, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(choice.choice((0, 0.02, 0.3, 1)) * choice.random())
        for _ in range(choice.choice((2, 3))):
            process.send_signal(signal.SIGINT)
            time.sleep(choice.choice((0, 0.0002, 0.001, 0.01)))
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    text = said.decode()
    assert process.returncode == 130, text
    assert "Traceback" not in text and "KeyboardInterrupt" not in text and "ignored" not in text, text
    end = time.monotonic() + 10
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.05)
    assert not marked(mark) and not list(temporary.iterdir())
    assert {entry.name for entry in tmp_path.iterdir()} <= {"tmp", "kept"}


def test_the_next_one_counts_again(monkeypatch):
    """Once it has been dealt with, or after a while, should something have swallowed it."""
    monkeypatch.setattr(interrupt, "came", False)
    with pytest.raises(KeyboardInterrupt):
        interrupt._remember(2, None)
    interrupt._remember(2, None)
    interrupt.wait_for_next()
    with pytest.raises(KeyboardInterrupt):
        interrupt._remember(2, None)
    monkeypatch.setattr(interrupt, "AGAIN", 0)
    with pytest.raises(KeyboardInterrupt):
        interrupt._remember(2, None)


def test_one_that_python_can_only_report_comes_again():
    """In a weakref's callback an exception is printed and forgotten."""
    code = (
        "import time, weakref; from ikpy_llm import cli; cli.interrupt.remember()\n"
        "class A: pass\n"
        "a = A()\n"
        "r = weakref.ref(a, lambda _: cli.interrupt._remember(2, None))\n"
        "def main(**_):\n    global a\n    del a\n    time.sleep(20)\n    return 0\n"
        "cli.main = main; cli.script('ikpy')"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stderr) == (130, "")
