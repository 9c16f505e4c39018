"""Commands as a user meets them: options from words and environment, notices, errors of one line, help, dispatch."""

import io
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from ikpy_llm import cli
from ikpy_llm.cli import text as texts
from ikpy_llm.cli.commands import bench, cache, run
from ikpy_llm.cli.ignored import IGNORED
from ikpy_llm.cli.options import flags_of, parse
from ikpy_llm.errors import IkpyError
from ikpy_llm.version import VERSION


def options(*words, of=run.Options, env=None):
    return parse(of, words, "ikpy-run", environ=env or {})


# --- options ---


def test_defaults_are_those_of_the_class():
    assert options() == run.Options()
    assert options(of=bench.Options) == bench.Options()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["-n", "24"], "n_predict", 24),
        (["-n", "-1"], "n_predict", -1),
        (["--n_predict", "7"], "n_predict", 7),
        (["--n-predict=7"], "n_predict", 7),
        (["--top_k", "5"], "top_k", 5),
        (["-p", "-t 3"], "prompt", "-t 3"),
        (["-p", ""], "prompt", ""),
        (["-p", "a=b c"], "prompt", "a=b c"),
        (["--prompt", "--help"], "prompt", "--help"),
        (["-t", "1", "-t", "2"], "threads", 2),
        (["-rtr"], "repack", True),
        (["-rtr", "-n", "-1"], "repack", True),
        (["-rtr", "0"], "repack", False),
        (["-rtr", "off"], "repack", False),
        (["-no-rtr"], "repack", False),
        (["-no-rtr", "-rtr", "on"], "repack", True),
        (["-fa"], "flash_attn", "on"),
        (["-fa", "1"], "flash_attn", "1"),
        (["--flash_attn", "auto"], "flash_attn", "auto"),
        (["--no-display-prompt"], "display_prompt", False),
        (["--no_display_prompt"], "display_prompt", False),
        (["-e"], "escape", True),
        (["--no-escape"], "escape", False),
        (["--ignore-eos"], "ignore_eos", True),
        (["--seed", "7"], "seed", 7),
        (["-s", "-1"], "seed", -1),
        (["--temp", "0"], "temp", 0.0),
        (["--temp", "1e-3"], "temp", 1e-3),
        (["-ub", "64"], "ubatch", 64),
        (["-b", "64"], "batch", 64),
        (["-c", "4096"], "n_ctx", 4096),
        (["-tb", "2"], "threads_batch", 2),
    ],
)
def test_words(words, name, value):
    found = options(*words)
    assert getattr(found, name) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-t", "x"], "-t: 'x' is not a whole number up to 1024"),
        (["-t", "1025"], "-t: '1025' is not a whole number up to 1024"),
        (["-ub", "1.5"], "-ub: '1.5' is not a whole number from 1 on"),
        (["--temp", "hot"], "--temp: 'hot' is not a number"),
        (["--temp", "nan"], "--temp: 'nan' is not a number"),
        (["--min-p", "2"], "--min-p: '2' is not a number from 0 to 1"),
        (["-fa", "maybe"], "-fa: 'maybe' is not one of on, off, auto, 1, 0"),
        (["-rtr", "maybe"], "-rtr: 'maybe' is not one of on, off, 1, 0"),
        (["-n"], "-n: a value is missing"),
        (["--top-kk", "4"], "unknown argument: --top-kk; did you mean --top-k?"),
        (["--max-tokens", "4"], "unknown argument: --max-tokens; did you mean --n-predict?"),
        (["--max_new_tokens", "4"], "unknown argument: --max-new-tokens; did you mean --n-predict?"),
        (["--num-threads", "4"], "unknown argument: --num-threads; did you mean --threads?"),
        (["--repetition-penalty", "2"], "unknown argument: --repetition-penalty; did you mean --repeat-penalty?"),
        (["-foo"], "unknown argument: -foo"),
        (["--no-disp"], "unknown argument: --no-disp"),
        (["hello"], "unrecognized arguments: hello"),
        (["-v=3"], "-v"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(IkpyError) as error:
        options(*words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_environment():
    assert options(env={"IKPY_THREADS": "3"}).threads == 3
    assert options(env={"LLAMA_ARG_THREADS": "3"}).threads == 3
    assert options(env={"LLAMA_ARG_THREADS": "3", "IKPY_THREADS": "4"}).threads == 4
    assert options("-t", "5", env={"IKPY_THREADS": "4"}).threads == 5
    assert options(env={"LLAMA_ARG_CTX_SIZE": "512", "LLAMA_ARG_UBATCH": "32"}).n_ctx == 512
    assert options(env={"IKPY_REPACK": "off"}).repack is False
    assert options(env={"IKPY_NO_DISPLAY_PROMPT": "1"}).display_prompt is False
    assert options(env={"IKPY_THREADS": ""}).threads is None
    with pytest.raises(IkpyError, match="IKPY_THREADS: 'many' is not a whole number"):
        options(env={"IKPY_THREADS": "many"})


def test_gpu_and_removed_flags_are_ignored_with_one_line():
    found = options("-ngl", "99", "-fmoe", "-ts", "3,1", "-t", "2", "--no_warmup", "-fmoe", "1")
    assert found.threads == 2
    assert found.notices == ["ignored, they change nothing in ikpy: -ngl 99, -fmoe, -ts 3,1, --no-warmup, -fmoe 1"]


def test_flags_of_ours_are_not_ignored():
    assert options("--no-warmup", of=bench.Options).warmup is False
    names = {name for _, spec in flags_of(run.Options) for name in (*spec.names, *spec.off)}
    assert not names & set(IGNORED)


@pytest.mark.parametrize("command", [run, bench, cache])
def test_every_flag_is_stated_once_and_helped(command):
    names = [n for _, spec in flags_of(command.Options) for n in (*spec.names, *spec.off)]
    assert len(names) == len(set(names))
    assert all(spec.help for _, spec in flags_of(command.Options))


def test_lists():
    found = options("-p", "8,16", "-p", "32", "-n", "0", "-t", "1,2", of=bench.Options)
    assert (found.n_prompt, found.n_gen, found.threads) == ([8, 16, 32], [0], [1, 2])
    with pytest.raises(IkpyError, match="-p: 'x' is not a whole number"):
        options("-p", "8,x", of=bench.Options)


def test_escapes():
    assert texts.unescape(r"a\n\tb\\n\x41\q") == "a\n\tb\\nA\\q"
    assert run.prompt_of(run.Options(prompt=r"a\n")) == "a\n"
    assert run.prompt_of(run.Options(prompt=r"a\n", escape=False)) == r"a\n"


def test_prompt_file(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    file = tmp_path / "prompt.txt"
    file.write_bytes("é\\n\n".encode())
    assert run.prompt_of(run.Options(file=str(file))) == "é\\n"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(IkpyError, match="can't decode"):
        run.prompt_of(run.Options(file=str(file)))
    with pytest.raises(IkpyError, match="No such file"):
        run.prompt_of(run.Options(file=str(tmp_path / "none")))
    with pytest.raises(IkpyError, match="no prompt; give -p TEXT"):
        run.main(run.Options())
    with pytest.raises(IkpyError, match="exclude each other"):
        run.main(run.Options(prompt="x", file=str(file)))


# --- the program ---


def test_umbrella_lists_every_command(capsys):
    assert cli.main([], "ikpy") == 0
    text = capsys.readouterr().out
    assert {"run", "bench", "cache"} <= set(cli.command_list())
    for name, line in cli.command_list().items():
        assert f"{name} " in text and line in text and line


@pytest.mark.parametrize("program", ["ikpy", "ikpy-run"])
def test_version(program, capsys):
    assert cli.main(["--version"], program) == 0
    assert capsys.readouterr().out == f"ikpy {VERSION}\n"


def test_help(ikpy):
    done = ikpy("run", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("--repeat-penalty", "-rtr", "IKPY_CTX_SIZE", "default: 40"):
        assert text in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["run"],
        ["run", "-p", "x", "-n", "y"],
        ["run", "-p", "x", "-m", "no-such-file.gguf"],
        ["bench", "-m", "no-such-file.gguf"],
        ["run", "-p", "x", "-m", "."],
        ["run", "-p", "x", "-m", "README.md"],
        ["bench", "-o", "xml"],
        ["cache", "burn"],
    ],
    ids=" ".join,
)
def test_errors_are_one_line(ikpy, words):
    done = ikpy(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_notice_is_one_line_on_stderr(ikpy):
    done = ikpy("run", "-ngl", "99", "-p", "x", "-m", "no-such-file.gguf")
    notice, error = done.stderr.splitlines()
    assert notice == "note: ignored, they change nothing in ikpy: -ngl 99"
    assert error.startswith("error: ")


def test_script_name_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["somewhere/ikpy-cache", "burn"])
    assert cli.main() == 1
    assert "'burn' is not one of show, clear" in capsys.readouterr().err


def test_interrupt_and_broken_pipe(monkeypatch):
    for error, code in ((KeyboardInterrupt, 130),):
        monkeypatch.setattr(cache, "main", lambda _, error=error: (_ for _ in ()).throw(error))
        assert cli.main(["cache"], "ikpy") == code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_output_that_cannot_be_written():
    """A full disk is an error of one line; streams that are closed are nobody's business."""
    command = f"{sys.executable} -m ikpy_llm cache"
    done = subprocess.run(f"{command} >/dev/full", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")
    assert subprocess.run(f"{command} <&- >&- 2>&-", shell=True, cwd=ROOT).returncode == 0
