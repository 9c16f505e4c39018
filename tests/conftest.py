"""What tests share: the folders of the checkout and `ikpy` as a user calls it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.run import cores

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def compilers():
    """Compiler processes that last: a hundred tests compile a kernel or two, and importing Numba takes a second."""
    jit.keep_compilers = True
    yield
    jit.release_compilers()


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Ctrl-C reaches what tests start, also where they run as a shell's background job, which has it ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def many_threads():
    """Pools of more threads than this machine has CPUs, so that everything is split into odd numbers of parts too."""
    before, cores.at_once = cores.at_once, lambda: 64
    yield
    cores.at_once = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder for the models of one file of tests."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def ikpy():
    """Runs `ikpy WORDS...` in a process of its own: ikpy("run", "-p", "x", env={...}) -> CompletedProcess with text."""

    def run(*words, env=None, **kwargs):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("IKPY_", "LLAMA_ARG_")) or k in KEPT}
        command = [sys.executable, "-m", "ikpy_llm", *map(str, words)]
        return subprocess.run(
            command,
            env={**clean, **(env or {})},
            cwd=kwargs.pop("cwd", ROOT),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=kwargs.pop("timeout", 900),
            **kwargs,
        )

    return run


# Where things are and for which machine, not what is done with them.
KEPT = ("IKPY_CACHE", "IKPY_TARGET", "IKPY_EMULATE", "IKPY_TARGET_NO_VNNI", "IKPY_TARGET_I8MM")
