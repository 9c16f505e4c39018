"""What a file says cannot command the terminal: its control characters are escaped there, and a pipe gets the bytes."""

import os
import subprocess
import sys

import gguf_writer
import pytest
import tiny_llama
import tiny_model
from conftest import ROOT
from terminal import Terminal

from ikpy_llm.errors import printable

EVIL = "\x1b]0;evil\x07"


def test_printable():
    assert printable("Ünï 漢字 \t\r\n") == "Ünï 漢字 \t\r\n"
    assert printable("a\x00\x1b[31m\x07\x7f\x9b1mb\n") == "a\\x00\\x1b[31m\\x07\\x7f\\x9b1mb\n"


@pytest.fixture(scope="module")
def labelled(folder):
    """A file whose texts are commands of a terminal."""
    names = ("name", "size_label", "basename", "finetune", "quantized_by")
    change = {f"general.{name}": EVIL for name in names} | {EVIL: EVIL, f"llama.{EVIL}": 5}
    return tiny_model.write(folder / "labelled.gguf", change)


@pytest.mark.parametrize("output", ["md", "csv", "json", "sql"])
def test_labels_of_a_file(ikpy, labelled, output):
    done = ikpy("bench", "-m", labelled, "-p", "4", "-n", "1", "-r", "1", "-o", output, "-v", "--profile")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "evil" in done.stdout


def test_log_and_errors(ikpy, labelled, tmp_path):
    for words in (["-p", "x", "-v"], ["-p", "x", "-st", "--chat-template", f"{{{{ raise_exception('{EVIL}') }}}}"]):
        done = ikpy("run", "-m", labelled, *words, "-n", "1", "--temp", "0")
        assert "\x1b" not in done.stderr and "evil" in done.stderr, done.stderr
    assert "\\x1b]0;evil" in ikpy("run", "-m", f"{tmp_path}/{EVIL}.gguf", "-p", "x").stderr


@pytest.fixture(scope="module")
def evil(folder):
    """A model whose capital letters have ESC before them: in byte-level BPE that byte is written as ě."""
    pieces = [f"ě{piece}" if len(piece) == 1 else piece for piece in tiny_model.PIECES[:26]] + tiny_model.PIECES[26:]
    meta = (
        tiny_llama.meta() | tiny_model.VOCABULARY | {"tokenizer.ggml.tokens": pieces, "tokenizer.ggml.merges": ["T H"]}
    )
    tensors = tiny_llama.tensors(meta, ("Q8_0",), seed=1, tied=True)
    return gguf_writer.write(folder / "evil.gguf", meta, tensors)


WORDS = ["-p", "ABC", "-n", "100", "--ignore-eos", "--temp", "2", "--top-k", "0", "--seed", "1"]


def test_the_text_of_a_model(evil):
    command = [sys.executable, "-m", "ikpy_llm", "run", "-m", str(evil), *WORDS, "--no-display-prompt"]
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert piped.returncode == 0 and piped.stdout.count("\x1b") > 5, piped.stderr
    if not hasattr(os, "openpty"):
        pytest.skip("no pseudo-terminals")
    with Terminal("run", "-m", evil, *WORDS, "--no-display-prompt", "--quiet") as t:
        assert t.end() == 0
        assert "\x1b" not in t.text and printable(piped.stdout).rstrip() in t.text.replace("\r\n", "\n")
