"""Closing a model, and forking, while another thread computes with it. In processes: what is stuck is machine code."""

import os
import subprocess
import sys
import textwrap

import pytest
import tiny_chat

START = """
import os, signal, sys, threading, time
from ikpy_llm import IkpyError, Model
model = Model.load(sys.argv[1], n_ctx=4096, threads=int(sys.argv[2]))
written = []
def write(text="AB", **options):
    for piece in model.generate(text, temp=0, ignore_eos=True, **options):
        written.append(piece)
def endless():
    try:
        while True:
            write(keep=0)
    except IkpyError as error:
        ended.append(str(error))
ended = []
"""
CLOSED = """
thread = threading.Thread(target=endless)
thread.start()
while len(written) < 20:
    time.sleep(0.001)
model.close()
thread.join()
assert len(ended) == 1 and ended[0].endswith("this model has been closed"), ended
model.close()
try:
    model.logits([1])
except IkpyError as error:
    assert "closed" in str(error)
assert threading.active_count() == 1
"""
SIGNALLED = """
signal.signal(signal.SIGALRM, lambda *_: model.close())
signal.setitimer(signal.ITIMER_REAL, DELAY)
endless()
assert len(ended) == 1 and ended[0].endswith("this model has been closed"), ended
model.close()
"""
FORKED = """
threading.Thread(target=endless, daemon=True).start()
while len(written) < 20:
    time.sleep(0.001)
for _ in range(8):
    time.sleep(0.003)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs is killed
        written.clear()
        try:
            write(n_predict=5)
            model.reset()
            text = "".join(model.chat([{"role": "user", "content": "AB"}], n_predict=3, temp=0))
            model.close()
            os._exit(0 if written and text else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(2)
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
assert not ended
"""


@pytest.fixture(scope="module")
def path(folder):
    return tiny_chat.write(folder / "m.gguf")


def run(code: str, path, threads: int):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore:.*multi-threaded", "-c", textwrap.dedent(START + code), path, str(threads)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_close_while_another_thread_generates(path, threads):
    run(CLOSED, path, threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no signals of this kind here")
@pytest.mark.parametrize("delay", [0.01, 0.02, 0.03, 0.05])
def test_close_in_a_signal_handler(path, delay):
    run(SIGNALLED.replace("DELAY", str(delay)), path, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("threads", [1, 2])
def test_fork_while_another_thread_generates(path, threads):
    run(FORKED, path, threads)
