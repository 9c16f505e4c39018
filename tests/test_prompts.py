"""What `ikpy-run` makes of the texts it is given: escapes that are bytes, files and pipes as they are, no text at all,
texts with their own BOS, and flags of recipes."""

import json
import re

import gguf_writer
import numpy as np
import pytest
import tiny_llama
from gguf import GGMLQuantizationType, quantize

from ikpy_llm.cli import text as texts
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.text.vocab.vocab import load_vocab

# One token per byte, after unknown, BOS and EOS: a vocabulary that shows what bytes a prompt has.
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "<s2>"]
BOS = 1
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write(path, change=None):
    m = tiny_llama.meta(vocab_size=len(WORDS), context_length=512) | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.scores": [0.0] * len(WORDS),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 3],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
    }
    tensors = tiny_llama.tensors(m, ("Q8_0",), tied=True)
    rows = np.random.default_rng(2).normal(0, 0.125, (len(WORDS), 64)).astype(np.float32)
    tensors["token_embd.weight"] = "Q8_0", rows.shape, quantize(rows, GGMLQuantizationType.Q8_0).tobytes()
    return gguf_writer.write(path, m | (change or {}), tensors)


@pytest.fixture(scope="module")
def model(folder):
    """A model that puts BOS before every text."""
    return write(folder / "bytes.gguf")


def ids(done) -> list[int]:
    """The tokens that --verbose-prompt shows."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    found = [int(n) for n in re.findall(r"^ *(\d+) -> '", done.stderr, re.M)]
    assert f"number of tokens in prompt = {len(found)}" in done.stderr
    return found


def bytes_of(text: str | bytes) -> list[int]:
    return [BOS, *(3 + b for b in (text.encode() if isinstance(text, str) else text))]


@pytest.fixture
def run(ikpy, model):
    return lambda *words, **kwargs: ikpy("run", model, "--verbose-prompt", "-n", "2", "--temp", "0", *words, **kwargs)


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_escapes_are_bytes(run):
    assert texts.unescape(r"\xe2\x82\xac\x41\n\q é") == "€A\n\\q é"
    done = run("-p", r"\xe2\x82\xac")
    assert ids(done) == bytes_of("€") and done.stdout.startswith("€")
    assert ids(run("-p", r"\xe2\x82\xac", "--no-escape")) == bytes_of(r"\xe2\x82\xac")
    done = run("-p", r"A\xff")  # no UTF-8
    assert ids(done) == bytes_of("A\ufffd")
    assert "note: a text of the command line is not UTF-8 (byte 0xff)" in done.stderr


def test_escapes_of_the_other_flags(run, ikpy, model):
    done = run("-i", "-p", "A", "--in-prefix", r"\xe2\x82\xac", "--in-suffix", r"\xc3\xa9", "-n", "1", input="B\n")
    assert done.returncode == 0 and "é" in done.stdout
    (n,) = re.findall(r"prompt eval time = .* / +(\d+) tokens", done.stderr)
    assert int(n) == 2 + 1 + 3 + 2 + 2  # BOS A, the model's token, €, B and a line end, é
    done = run("-sys", r"\xe2\x82\xac", "-st", "-p", "A", "--chat-template", TEMPLATE)
    assert ids(done) == bytes_of("€A")
    text = run("-p", "A", "-n", "9").stdout.rstrip("\n")  # noise of bytes
    stop = "".join(rf"\x{b:02x}" for b in text[2].encode())
    assert run("-p", "A", "-n", "9", "-r", stop).stdout == text[:2] + "\n"


@pytest.mark.parametrize("env", [{}, C_LOCALE], ids=["utf-8", "C locale"])
def test_words_of_the_command_line_in_any_locale(run, env):
    done = run("-p", "é☃", env=env)
    assert ids(done) == bytes_of("é☃") and done.stdout.startswith("é☃")
    assert ids(run("-p", "é☃", "--no-escape", env=env)) == bytes_of("é☃")
    assert ids(run("-st", "-p", "A", "-sys", "é", "--chat-template", TEMPLATE + "ü", env=env)) == bytes_of("éAü")
    assert ids(run(env=env, input="é\n")) == bytes_of("é")


def test_files_and_pipes_are_taken_as_they_are(run, tmp_path):
    file = tmp_path / "prompt.txt"
    for data, expected in ((b"a\r\nb\r\n\r\nc\r\n", b"a\r\nb\r\n\r\nc\r"), (b"a\rb\n\n", b"a\rb\n"), (rb"\n", rb"\n")):
        file.write_bytes(data)
        assert ids(run("-f", file)) == bytes_of(expected)
        with file.open("rb") as stdin:
            assert ids(run("-f", "-", stdin=stdin)) == bytes_of(expected)
        with file.open("rb") as stdin:
            assert ids(run(stdin=stdin)) == bytes_of(expected)
    file.write_bytes(b"x\r\ny\n")
    assert ids(run("-st", "-p", "A", "-sysf", file, "--chat-template", TEMPLATE)) == bytes_of("x\r\nyA")
    done = run("-f", "-", "-sysf", "-", input="x")
    assert done.returncode == 1 and "error: -sysf -: stdin has been read by -f -" in done.stderr


def test_no_text_is_a_text_from_bos(run, ikpy, folder, tmp_path):
    file = tmp_path / "empty.txt"
    file.write_bytes(b"")
    done = run("-p", "")
    assert ids(done) == [BOS] and done.stdout
    assert ids(run("-f", file)) == [BOS] and run("-f", file).stdout == done.stdout
    done = run(input="")  # nobody asked for an empty one
    assert done.returncode == 1 and "error: no prompt" in done.stderr
    other = write(folder / "without.gguf", {"tokenizer.ggml.add_bos_token": False})
    done = ikpy("run", other, "-p", "")
    assert (done.returncode, done.stdout) == (1, "") and "the prompt is empty and the model has no token" in done.stderr


WARNING = "the text begins with two '<s>': the model asks for one, so leave it out of the text"


def test_a_second_bos_is_said(run):
    done = run("-p", "<s>A")
    assert ids(done) == [BOS, *bytes_of("A")] and WARNING in done.stderr.splitlines()
    assert "begins with two" not in run("-p", "A<s>").stderr + run("-p", "").stderr
    done = run("-st", "-p", "A", "--chat-template", "<s>" + TEMPLATE)  # templates write it themselves
    assert ids(done) == bytes_of("A") and "two" not in done.stderr


def test_a_second_eos_is_said(model, caplog):
    vocab = load_vocab(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": open_gguf(model).meta["tokenizer.ggml.tokens"],
            "tokenizer.ggml.scores": [0.0] * len(WORDS),
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 3],
            "tokenizer.ggml.add_eos_token": True,
        },
        "m.gguf",
    )
    for text, words in (("A</s>", ["ends with two '</s>'"]), ("A", []), ("", []), ("<s></s>", ["begins", "ends"])):
        caplog.clear()
        vocab.encode(text, parse_special=True)
        assert len(caplog.messages) == len(words)
        assert all(part in message for part, message in zip(words, caplog.messages, strict=True))


def test_until_the_context_is_full(run):
    for words in ((), ("--context-shift",), ("--keep", "1"), ("--keep", "-1")):
        done = run("-p", "A", "-n", "-2", "-c", "256", *words, timeout=300)
        (n,) = re.findall(r"total time = .* / +(\d+) tokens", done.stderr)
        assert done.returncode == 0 and int(n) == 256, words


@pytest.mark.parametrize(
    "words",
    [["--lora", "a.gguf"], ["--control-vector", "v.gguf"], ["--image", "i.png"], ["-ctk-first", "q8_0,2"]],
    ids=" ".join,
)
def test_what_would_change_the_text_is_an_error(run, words):
    done = run("-p", "A", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == f"error: {' '.join(words)}: ikpy cannot do that, and the result would be another one without\n"
    )


def test_what_only_costs_speed_is_a_note(run):
    done = run("-p", "A", "-md", "d.gguf", "-ot", "exps=CPU")
    assert done.returncode == 0 and done.stdout == run("-p", "A").stdout
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "-ot exps=CPU" in notes[0] and "-md d.gguf" in notes[1]


def test_flags_of_recipes(ikpy, run, model):
    plain = run("-p", "A").stdout
    for words in (["--alias", "x"], ["-a", "x"], ["--no-cnv"], ["-no-cnv"], ["--jinja"], ["--no-perf"], ["-nr"]):
        assert run("-p", "A", *words).stdout == plain, words
    assert ikpy("run", "-p", "A", "-n", "2", "--temp", "0", model).stdout == plain  # wherever the file stands
    assert ikpy("run", "-m", model, "-p", "A", "-n", "2", "--temp", "0").stdout == plain
    done = ikpy("bench", model, "-p", "4", "-n", "0", "-r", "1", "-o", "json", "--alias", "x", "--no-perf")
    assert [r["model_filename"] for r in json.loads(done.stdout)] == [str(model)]
    done = ikpy("sweep-bench", model, "-c", "256", "-ub", "128", "-n", "1", "--alias", "x", "-cnv", "--no-perf")
    assert done.returncode == 0 and done.stdout.count("|   128 |") == 2
    done = ikpy("run", "What", "is", "that?")
    assert done.returncode == 1 and "unrecognized arguments: What is that?" in done.stderr
    for command in ("run", "bench", "sweep-bench"):
        assert ikpy(command, "--list-devices").stdout.startswith("Available devices:\n  CPU: ")


def test_bos_before_what_the_user_writes(run):
    def n_read(*words):
        done = run("-i", "-p", "A", "-n", "1", *words, input="B\n")
        assert done.returncode == 0, done.stderr
        return int(re.findall(r"prompt eval time = .* / +(\d+) tokens", done.stderr)[0])

    assert n_read("--in-prefix-bos") == n_read() + 1 == n_read("--in-prefix", "<s>")
    done = run("-cnv", "-p", "A", "--in-prefix-bos")
    assert done.returncode == 1 and "--in-prefix-bos is for -i" in done.stderr


def test_a_text_for_a_model_with_a_chat_format(ikpy, folder, run):
    """-p continues it, and says how it would be a message; nothing is said where that is clear."""
    path, note = (
        write(folder / "chat.gguf", {"tokenizer.chat_template": TEMPLATE}),
        "note: the text is continued as it is; -cnv",
    )

    def said(*words, **kwargs):
        done = ikpy("run", path, "-n", "1", *words, **kwargs)
        assert done.returncode == 0, done.stderr
        return done.stderr.count(note)

    assert said("-p", "A") == said(input="A") == 1
    assert said("-p", "A", "-no-cnv") == said("-p", "A<s2>B") == said("-p", "A", "-st") == said("-p", "A", "-q") == 0
    assert said("-i", "-p", "A", "-st") == 0 and note not in run("-p", "A").stderr
