"""`ikpy` on a terminal: pasted text, Ctrl-C at any time, chat where nothing else is asked for, bars and log lines."""

import json
import os
import re
import subprocess
import sys
import time

import gguf_writer
import psutil
import pytest
import tiny_llama
import tiny_model
from conftest import ROOT
from terminal import PASTE, PASTE_END, Terminal, screen

pytestmark = pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
PROMPT = r"\n(\x1b\[\?2004h)?> $"
LETTERS = [chr(33 + i) for i in range(tiny_llama.N_VOCAB - 4)]
SPECIAL = ["<|u|>", "<|e|>", "<|a|>", "<|n|>"]  # the last stands for line ends
TEMPLATE = "{% for m in messages %}{{ '<|u|>' + m.content + '<|e|>' }}{% endfor %}<|a|>"


@pytest.fixture(scope="module")
def plain(folder):
    """A model without a chat template."""
    return tiny_model.write(folder / "plain.gguf")


@pytest.fixture(scope="module")
def chat(folder):
    """One with a template; token i is chr(33 + i)."""
    m = tiny_llama.meta(context_length=1 << 20) | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*LETTERS, *SPECIAL],
        "tokenizer.ggml.token_type": [1] * len(LETTERS) + [3] * 4,
        "tokenizer.ggml.merges": ["A B"],
        "tokenizer.ggml.eos_token_id": len(LETTERS) + 1,
        "tokenizer.chat_template": TEMPLATE,
    }
    m["tokenizer.ggml.tokens"][0] = "AB"
    return gguf_writer.write(folder / "chat.gguf", m, tiny_llama.tensors(m, ("Q8_0",)))


def messages_of(t, path):
    t.press(f"/save {path}\n")
    t.until("saved")
    t.press("/exit\n")
    assert t.end() == 0 and "Traceback" not in t.text
    return [m["content"] for m in json.loads(path.read_text(encoding="utf-8")) if m["role"] == "user"]


@pytest.mark.parametrize("how", ["bracketed", "no marks", "no line editing", "-mli"])
def test_pasted_lines_are_one_message(chat, tmp_path, how):
    words = {"no line editing": ["--simple-io"], "-mli": ["-mli"]}.get(how, [])
    marked = how in ("bracketed", "-mli")
    with Terminal("run", chat, "-n", "3", "--temp", "0", *words, term="xterm" if marked else "dumb") as t:
        t.until(r"> $")
        if marked:
            assert "\x1b[?2004h" in t.text  # the terminal is asked to mark what is pasted
            t.press(f"{PASTE}first\nsecond \\\n\n  third{PASTE_END}")
            t.until("third")
            t.press("\\\n" if how == "-mli" else "\n")
        else:
            t.press("first\nsecond \\\n\n  third\n")
        t.until(PROMPT)
        t.press("DEF\\\n" if how == "-mli" else "DEF\n")
        t.until(PROMPT)
        assert messages_of(t, tmp_path / "m.json") == ["first\nsecond \\\n\n  third", "DEF"]


def test_lines_typed_ahead_are_messages_of_their_own(chat, tmp_path):
    with Terminal("run", chat, "-n", "3", "--temp", "0", "--simple-io", term="dumb") as t:
        t.press("ABC\nDEF\n")  # before the prompt is there
        t.until(r"\n> [^>]*\n> [^>]*\n> $")
        assert messages_of(t, tmp_path / "m.json") == ["ABC", "DEF"]


@pytest.mark.parametrize("words", [["-cnv"], ["-i", "-r", "DEF"]], ids=" ".join)
def test_ctrl_c_while_a_message_is_read(chat, tmp_path, words):
    """It is obeyed at once, and the message is as if it had not been."""
    text = tmp_path / "long.txt"
    text.write_text("GHIJK" * 20_000, encoding="utf-8")  # takes many seconds
    with Terminal("run", chat, *words, "-f", text, "-c", "120000", "-n", "3", "--temp", "0") as t:
        t.until("read prompt")
        start = time.monotonic()
        t.interrupt()
        t.until(r"note: stopped; the message is forgotten\r\n(\r\n)?(\x1b\[\?2004h)?> $", 60)
        assert time.monotonic() - start < 2  # 0.05 s where nobody else computes
        assert not any("read prompt" in line for line in screen(t.text))
        t.press("ABC\n")
        t.until(r"ABC\r\n(.|\n)*> $")
        if words == ["-cnv"]:
            assert messages_of(t, tmp_path / "m.json") == ["ABC"]
        else:
            t.press("/exit\n")
            assert t.end() == 0
        (n,) = re.findall(r"prompt eval time = .* / +(\d+) tokens", t.text)
        assert int(n) < 50_000


def test_chat_where_nothing_else_is_asked_for(chat, plain, tmp_path):
    with Terminal("run", "-m", chat, "-n", "3", "--temp", "0") as t:
        t.until(r"> $")
        t.press("ABC\n")
        t.until(r"ABC\r\n(.|\n)*> $")
        assert messages_of(t, tmp_path / "m.json") == ["ABC"]
    for words in (["-m", plain], ["-m", chat, "-no-cnv"], ["-m", chat, "--no-cnv"]):
        with Terminal("run", *words) as t:
            assert t.end() == 1 and "error: no prompt; give -p TEXT" in t.text
    with Terminal("run", "-m", chat, "-p", "ABC", "-n", "3", "--temp", "0") as t:
        assert t.end() == 0
        assert "note: the text is continued as it is; -cnv makes it a message" in t.text


SLOW = """
import logging, sys, time
from ikpy_llm.cli import console
console.setup(verbose=False, quiet="quiet" in sys.argv)
log = logging.getLogger("ikpy.test")
with console.Progress() as progress:
    for i in range(12):
        progress(i, 12, "first job")
        time.sleep(0.06)
        log.info("line %d", i) if i in (2, 10) else None
    progress(12, 12, "first job")
    log.info("between")
    console.note("a note")
    for i in range(12):
        progress(i, 13, "second job")
        time.sleep(0.06)
    log.warning("while it is there")
    progress(13, 13, "second job")
    log.info("last")
"""


def test_bars_and_log_lines():
    """Lines are whole, above the bar; the bar is gone when its job is done."""
    with Terminal(command=[sys.executable, "-c", SLOW]) as t:
        assert t.end() == 0
    assert "first job" in t.text and "second job" in t.text
    shown = [line.rstrip() for line in screen(t.text) if line.strip()]
    assert shown == ["line 2", "line 10", "between", "note: a note", "while it is there", "last"]
    with Terminal(command=[sys.executable, "-c", SLOW, "quiet"]) as t:
        assert t.end() == 0 and t.text == ""


def test_quiet_and_no_perf(plain):
    words = "run", plain, "-p", "the end", "-n", "3", "--temp", "0"
    with Terminal(*words, "--no-perf") as t:
        assert t.end() == 0 and "KV self size" in t.text and "eval time" not in t.text
    for flag in ("--quiet", "-q", "--log-disable"):
        with Terminal(*words, flag, "-ngl", "9") as t:
            assert t.end() == 0
        assert re.fullmatch(r"the end[^\r\n]*\r\n", t.text), t.text


# --- Ctrl-C ---


@pytest.mark.parametrize(
    ("words", "wait_for"),
    [
        (["run", "-p", "the end", "-n", "-1", "--ignore-eos", "-c", "400000"], "the end"),
        (["bench", "-r", "5", "-p", "8", "-n", "400000", "-o", "md"], r"\| *pp8 \|"),
        (["sweep-bench", "-c", "100000", "-ub", "8"], r"\d+/\d+ N_KV [2-9]"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ctrl_c_ends_a_command(plain, words, wait_for):
    with Terminal(*words, "-m", plain) as t:
        t.until(wait_for)
        t.interrupt()
        assert t.end(60) == 130 and "Traceback" not in t.text, t.text[-2000:]
        assert "N_KV" not in screen(t.text)[-1]  # a bar is gone


def compilers_of(pid: int) -> list:
    """Its compiler processes, once there are some that have begun."""
    while not (
        found := [
            c for c in psutil.Process(pid).children() if "ikpy_llm.kernels.compiler.compile" in " ".join(c.cmdline())
        ]
    ):
        time.sleep(0.01)
    return found


def test_ctrl_c_while_kernels_are_compiled(plain, tmp_path):
    with Terminal("run", plain, "-p", "x", env={"IKPY_CACHE": str(tmp_path)}) as t:
        t.until("compiling")
        compilers = compilers_of(t.process.pid)
        assert all(os.getsid(child.pid) != t.process.pid for child in compilers)  # a terminal's Ctrl-C passes them by
        t.interrupt()
        assert t.end(60) == 130 and "Traceback" not in t.text, t.text[-2000:]
        assert not psutil.wait_procs(compilers, 30)[1]  # nobody needs their kernels any more


SLOW_MODULE = """
import sys, time
print("importing", file=sys.stderr, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("as extension modules do") from None
"""


@pytest.mark.parametrize(("module", "codes"), [("argparse", (-2, 130)), ("numpy", (130,))])
def test_ctrl_c_while_modules_are_imported(plain, tmp_path, module, codes):
    (tmp_path / f"{module}.py").write_text(SLOW_MODULE, encoding="utf-8")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with Terminal("run", plain, "-p", "x", env=env) as t:
        t.until("importing")
        t.interrupt()
        assert t.end(60) in codes and "Traceback" not in t.text, t.text


def test_importing_the_commands_leaves_ctrl_c_as_it_was():
    code = "import signal; before = signal.getsignal(2); import ikpy_llm.cli; print(signal.getsignal(2) is before)"
    for how in ("signal.default_int_handler", "signal.SIG_IGN", "signal.SIG_DFL"):
        text = f"import signal; signal.signal(2, {how}); {code}"
        done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == "True\n", done.stderr
