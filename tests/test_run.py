"""`ikpy-run` and `ikpy-bench` from end to end on a tiny model: what they print, and what they never import."""

import json
import os
import re
import statistics
import subprocess
import sys

import pytest
import tiny_model
from conftest import ROOT

TIMING = r"main: {name} time = +\d+\.\d\d ms / +{n} tokens \( *\d+\.\d\d ms per token, +\d+\.\d\d tokens per second\)"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


def run(ikpy, model, *words, prompt="the end", n=12, **kwargs):
    done = ikpy("run", "-m", model, "-p", prompt, "-n", n, "--temp", "0", *words, **kwargs)
    assert done.returncode == 0, done.stderr
    return done


def test_text_on_stdout_timings_on_stderr(ikpy, model):
    done = run(ikpy, model)
    assert done.stdout.startswith("the end") and done.stdout.endswith("\n")
    lines = done.stderr.splitlines()
    # "th", "e", " ", "e", "n", "d": six tokens; the first new token comes out of the prompt's own step.
    assert any(re.fullmatch(TIMING.format(name="prompt eval", n=6), line) for line in lines), done.stderr
    assert any(re.fullmatch(TIMING.format(name="       eval", n=11), line) for line in lines), done.stderr
    assert any(re.match(r"main: +load time = +\d+\.\d\d ms$", line) for line in lines)
    assert any(re.match(r"main: +total time = +\d+\.\d\d ms / +17 tokens$", line) for line in lines)
    assert any(re.match(r"main: +memory read = +\d+\.\d\d GB/s", line) for line in lines)


def test_same_text_however_it_is_run(ikpy, model):
    text = run(ikpy, model).stdout
    for words in (["-t", "1"], ["-t", "3"], ["-no-rtr"], ["-ub", "2"], ["-rtr", "on", "-c", "256"]):
        assert run(ikpy, model, *words).stdout == text, words
    assert run(ikpy, model, "--no-display-prompt").stdout == text.removeprefix("the end")


AUTOMATIC = [
    (["-t", "0"], {}),
    (["-t", "-1", "-tb", "-4"], {}),
    (["--threads=-8", "--threads-batch", "0"], {}),
    ([], {"LLAMA_ARG_THREADS": "-1"}),
    ([], {"LLAMA_ARG_THREADS_BATCH": "-1"}),
    ([], {"IKPY_THREADS": "0"}),
    ([], {"IKPY_THREADS": "-2", "IKPY_THREADS_BATCH": "0"}),
]


@pytest.mark.parametrize(("words", "env"), AUTOMATIC, ids=str)
def test_no_positive_number_of_threads_is_automatic(ikpy, model, words, env):
    run(ikpy, model, *words, n=2, env=env)


@pytest.mark.parametrize(("words", "env"), AUTOMATIC, ids=str)
def test_benchmarks_with_automatic_threads(ikpy, model, words, env):
    for command, sizes in (("bench", ["-p", "4", "-n", "2", "-r", "1"]), ("sweep-bench", ["-c", "256", "-ub", "128"])):
        done = ikpy(command, "-m", model, *sizes, *words, env=env)
        assert done.returncode == 0, done.stderr


def test_what_is_not_done_as_asked_is_said(ikpy, model):
    errors = run(ikpy, model, "-tb", "3", "-ngl", "99", n=1).stderr
    assert [line for line in errors.splitlines() if line.startswith("note: ")] == [
        "note: ignored, they change nothing in ikpy: -ngl 99"
    ]
    assert "KV self size = " in errors and "K (f16): " in errors


def test_seed(ikpy, model):
    words = ["run", "-m", model, "-p", "x", "-n", "16", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--temp", "2"]
    first, again, other = (ikpy(*words, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other


def test_until_the_context_is_full(ikpy, model):
    done = run(ikpy, model, "--ignore-eos", "-c", "256", n=-1)
    (n,) = re.findall(r"total time = .* / +(\d+) tokens", done.stderr)
    assert int(n) == 256


def test_prompt_longer_than_the_context(ikpy, model):
    done = ikpy("run", "-m", model, "-p", "x" * 300, "-c", "256", "-n", "1")
    assert done.returncode == 1 and "does not fit into the context of 256 positions" in done.stderr
    assert "Traceback" not in done.stderr


def test_utf8_whatever_the_locale(ikpy, model, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("é ☃ 語\n", encoding="utf-8")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = ikpy("run", "-m", model, "-f", prompt, "-n", "4", "--temp", "0", env=env)
    assert done.returncode == 0 and done.stdout.startswith("é ☃ 語"), done.stderr


def test_reader_that_leaves(model):
    command = [sys.executable, "-m", "ikpy_llm", "run", "-m", str(model), "-p", "x", "-n", "300", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode in (0, 141)
    assert "Traceback" not in errors and "BrokenPipe" not in errors


def test_warm_start_imports_no_compiler(ikpy, model):
    run(ikpy, model)
    words = [sys.executable, "-X", "importtime", "-m", "ikpy_llm", "run", "-m", str(model), "-p", "x", "-n", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0 and "numpy" in imported and "llvmlite" in {name.split(".")[0] for name in imported}
    heavy = {"numba", "gguf", "rich", "jinja2", "huggingface_hub", "sentencepiece", "requests"}
    assert not heavy & {name.split(".")[0] for name in imported}
    assert (
        not {"ikpy_llm.text.grammar.gbnf", "ikpy_llm.text.grammar.grammar", "ikpy_llm.cli.chat_loop"} & imported
    )  # 10 ms for nothing


def spoilt(model, tmp_path, how):
    data = bytearray(model.read_bytes())
    if how == "cut in the header":
        data = data[:200]
    elif how == "cut in the weights":
        data = data[:-1000]
    elif how == "magic":
        data[:4] = b"LGGU"
    elif how == "absurd count of tensors":
        data[8:16] = b"\xff" * 8
    elif how == "absurd count of keys":
        data[16:24] = b"\xff" * 8
    elif how == "empty":
        data = b""
    path = tmp_path / "spoilt.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "how",
    ["empty", "magic", "cut in the header", "cut in the weights", "absurd count of tensors", "absurd count of keys"],
)
@pytest.mark.parametrize("command", ["run", "bench"])
def test_spoilt_files_are_one_line(ikpy, model, tmp_path, how, command):
    done = ikpy(command, "-m", spoilt(model, tmp_path, how), "-p", "1")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "spoilt.gguf" in done.stderr


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"llama.context_length": None}, "llama.context_length"),
        ({"llama.attention.head_count": 3}, "head_count"),
        ({"general.architecture": "mystery"}, "mystery"),
        ({"llama.expert_count": 8}, "expert_used_count"),
        ({"llama.block_count": 3}, "blk.2."),
        ({"llama.block_count": 1}, "blk.1."),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_models_we_would_run_wrongly_are_refused(ikpy, tmp_path, change, part):
    path = tiny_model.write(tmp_path / "odd.gguf", change)
    done = ikpy("run", "-m", path, "-p", "x", "-n", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert part in done.stderr


def test_bench_table(ikpy, model):
    done = ikpy("bench", "-m", model, "-p", "8,16", "-n", "4", "-r", "2", "-t", "1,2")
    assert done.returncode == 0, done.stderr
    head, rule, *rows, empty, build = done.stdout.splitlines()
    assert head.split("|")[1:-1] == [
        f" {title} "
        for title in (
            f"{'model':30}",
            f"{'size':>10}",
            f"{'params':>10}",
            f"{'backend':10}",
            "threads",
            f"{'test':>13}",
            f"{'t/s':>16}",
        )
    ]
    assert set(rule) == set("|-: ") and empty == "" and build.startswith("build: ")
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [(c[4], c[5]) for c in cells] == [(t, test) for t in "12" for test in ("pp8", "pp16", "tg4")]
    assert all(
        c[0] == "llama ?B Q8_0" and c[3] == "CPU" and re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", c[6]) for c in cells
    )


def test_bench_json_with_roofs(ikpy, model):
    done = ikpy("bench", "-m", model, "-p", "8", "-n", "0", "-r", "2", "--roofline", "-o", "json", "-no-rtr")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert (
        record["test"] == "pp8" and record["n_prompt"] == 8 and record["repack"] is False and record["use_mmap"] is True
    )
    assert len(record["samples_ns"]) == len(record["samples_ts"]) == 2
    assert record["avg_ts"] == pytest.approx(sum(record["samples_ts"]) / 2, rel=1e-4)
    assert record["roof_gbps"] > 0.1 and record["roof_gmacs"] > 0.1
    roofs = zip(record["samples_roof_gbps"], record["samples_roof_gmacs"], record["samples_ns"], strict=True)
    shares = [
        max(record["gbps"] / gbps, record["gmacs"] / gmacs) * record["avg_ns"] / ns for gbps, gmacs, ns in roofs
    ]  # of each repetition, with the roofs beside it
    assert record["samples_share"] == pytest.approx(shares, rel=0.01, abs=1e-5)
    assert record["roof_share"] == pytest.approx(statistics.median(shares), rel=0.01, abs=1e-5)


def test_module_and_script_are_the_same(model):
    script = os.path.join(os.path.dirname(sys.executable), "ikpy-run")
    if not os.path.exists(script):
        pytest.skip("the package is not installed here")
    words = ["-m", str(model), "-p", "the end", "-n", "3", "--temp", "0"]
    found = [
        subprocess.run(command + words, cwd=ROOT, capture_output=True, text=True).stdout
        for command in ([script], [sys.executable, "-m", "ikpy_llm", "run"])
    ]
    assert found[0] == found[1] != ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merges": ["th"]}, "merge 0 is 'th'"),
        ({"merges": None}, "'tokenizer.ggml.merges' is missing"),
        ({"token_type": [1, 3]}, "'tokenizer.ggml.token_type' has 2 elements for 70 tokens"),
        ({"model": "llama", "scores": [float("nan")] * 70}, "'tokenizer.ggml.scores' has nan for token 0"),
        ({"eos_token_id": "x"}, "'tokenizer.ggml.eos_token_id' is 'x'; a whole number is accepted"),
        ({"suppress_tokens": ["x"]}, "'tokenizer.ggml.suppress_tokens' is"),
    ],
)
def test_a_damaged_vocabulary_is_one_line(ikpy, tmp_path, change, words):
    path = tiny_model.write(tmp_path / "m.gguf", {f"tokenizer.ggml.{key}": value for key, value in change.items()})
    done = ikpy("run", "-m", path, "-p", "the end", "-n", "2")
    assert done.returncode == 1 and not done.stdout
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ") and words in line], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("other", "text"), [("<|tool_response>", "the</s></s></s>"), ("b", "the")])
def test_end_of_a_sentence_tag_of_gemma4_ends_no_text(ikpy, tmp_path, other, text):
    """A model that writes nothing else: in a vocabulary with <|tool_response> the tag is text of HTML."""
    tokens = ["</s>", other, *tiny_model.PIECES[2:]]
    path = tiny_model.write(tmp_path / "m.gguf", {"tokenizer.ggml.tokens": tokens})
    assert run(ikpy, path, "--logit-bias", "0+1000", prompt="the", n=3).stdout == text + "\n"
