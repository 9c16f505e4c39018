"""Too little of something, and places that are odd: a command ends with one line or goes on, never with a traceback."""

import json
import os
import subprocess
import sys
import threading

import pytest
import tiny_chat
import tiny_model
from conftest import KEPT, ROOT

from ikpy_llm import cli
from ikpy_llm.cli import text
from ikpy_llm.cli.commands import cache
from ikpy_llm.engine.file import package_index
from ikpy_llm.engine.step.workers import Workers
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.compiler import jit

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
RUN = "-n 2 --temp 0 -t 2".split()


@pytest.fixture(scope="module")
def model(folder):
    return tiny_model.write(folder / "tiny.gguf")


@pytest.fixture(scope="module")
def chat(folder):
    return tiny_chat.write(folder / "chat.gguf")


def one_line(done) -> str:
    """The only line that a failed command says besides its log."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return errors[0]


def shell(command: str, cwd=ROOT, **env):
    """A command of /bin/sh with `$ikpy` as ikpy; bytes that are no UTF-8 may stand in it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("IKPY_", "LLAMA_ARG_")) or k in KEPT}
    own = {"ikpy": f"{sys.executable} -m ikpy_llm", "PYTHONPATH": str(ROOT)}
    words = ["/bin/sh", "-c", command]
    return subprocess.run(
        words, cwd=cwd, env=clean | own | env, capture_output=True, text=True, errors="replace", timeout=300
    )


# --- texts without an end, and JSON ---


@pytest.mark.parametrize("flag", ["-f", "-sysf", "--chat-template-file", "--grammar-file", "-jf"])
def test_files_have_a_bound(ikpy, model, flag):
    if not os.path.exists("/dev/zero"):
        pytest.skip("needs a file without an end")
    words = [] if flag == "-f" else ["-p", "x"]
    assert one_line(ikpy("run", "-m", model, *RUN, *words, flag, "/dev/zero")) == (
        f"error: {flag} /dev/zero: more than 64 MiB; a text of that many bytes at most is accepted"
    )


@posix
@pytest.mark.parametrize(("words", "name"), [("-f -", "-f -"), ("", "a prompt without -p")])
def test_stdin_has_a_bound(model, words, name):
    done = shell(f"$ikpy run -m {model} {' '.join(RUN)} {words} </dev/zero")
    assert one_line(done).startswith(f"error: {name}: more than 64 MiB")


def test_a_text_of_the_largest_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MOST_BYTES", 3 * text.CHUNK)
    file = tmp_path / "text"
    file.write_bytes(b"x" * text.MOST_BYTES)
    assert text.read_file("-f", str(file)) == "x" * text.MOST_BYTES
    file.write_bytes(b"x" * (text.MOST_BYTES + 1))
    with pytest.raises(IkpyError, match="more than 3 MiB"):
        text.read_file("-f", str(file))
    file.write_bytes(b"a\r\nb\rc\n")
    assert text.read_file("-f", str(file)) == "a\nb\nc\n" and text.read_file("-f", str(file), True) == "a\r\nb\rc\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"a":' * 20_000 + "1" + "}" * 20_000, "not JSON that can be read: it has too many brackets in each other"),
        ('{"a":' * 900 + "1" + "}" * 900, "cannot be handed to its process"),
        ("[" * 60_000, "too many brackets"),
        ("{", "is not JSON: Expecting property name"),
        ('{"a": %s}' % ("9" * 5000), "is not JSON: Exceeds the limit"),
        ("[1]", "--chat-template-kwargs is [1]; a JSON object is accepted"),
        *(
            (json.dumps({name: 1}), f"--chat-template-kwargs has {name}, which the call itself gives to the template")
            for name in ("messages", "template", "self", "add_generation_prompt")
        ),
        ('{"tools": 1}', "tools is 1; a list of dictionaries"),
    ],
)  # fmt: skip
def test_variables_of_templates(ikpy, chat, given, message):
    assert message in one_line(ikpy("run", "-m", chat, *RUN, "-p", "x", "-st", "--chat-template-kwargs", given))


def test_variables_may_have_the_names_of_our_own_parameters(ikpy, chat):
    names = "cache vocab jinja name text bos eos program values tokens namespace".split()
    done = ikpy(
        *["run", "-m", chat, *RUN, "-p", "x", "-st", "--chat-template-kwargs", json.dumps(dict.fromkeys(names, 1))]
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["[" * 60_000, '{"files": [{"filename": "a", "url": "b", "hashes": []}]}', "5"])
def test_pages_of_an_index(monkeypatch, tmp_path, page):
    class Answer:
        url, headers = "http://x/", type("H", (), {"get_content_type": staticmethod(lambda: "a/b+json")})
        read = staticmethod(lambda n: page.encode())
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

    monkeypatch.setenv("PIP_INDEX_URL", "http://x")
    monkeypatch.setattr(package_index.Settings, "_open", lambda *_: Answer())
    with pytest.raises(OSError, match="http://x"):
        package_index.fetch("a", "1", tmp_path, 1, print)


# --- too few descriptors, threads, processes; too little memory ---


def no_more_threads(monkeypatch, allowed: int = 0) -> None:
    """Only so many threads start from now on, as with `ulimit -u`."""
    start, left = threading.Thread.start, [allowed]

    def refuse(self):
        if left[0] <= 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_workers_without_threads(monkeypatch):
    before = threading.active_count()
    no_more_threads(monkeypatch, 1)
    with pytest.raises(IkpyError, match=r"no thread can be started for the model \(the 3. of 4\).*-t"):
        Workers(4)
    monkeypatch.undo()
    for thread in threading.enumerate():
        if thread.name.startswith("ikpy-") and threading.active_count() > before:
            thread.join(5)  # those that had been started end
    assert threading.active_count() <= before


def test_a_fork_without_threads_tries_again(monkeypatch):
    with Workers(2) as pool:
        pool._shared.pid = -1  # as a forked child finds it
        with monkeypatch.context() as m:
            no_more_threads(m)
            for _ in range(2):
                with pytest.raises(IkpyError, match="no thread can be started"):
                    pool.run(0, 0)
        pool.run(0, 0)


GATED = [jit.Kernel("rows.rowwise.gated", act=act) for act in ("silu", "gelu")]


def test_compiling_without_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path))
    no_more_threads(monkeypatch)
    jit.compile_missing(GATED)
    assert all(jit.read_object(jit.cache_path(kernel)) for kernel in GATED)


@pytest.mark.parametrize("refused", [1, 2])
def test_compiling_without_processes(monkeypatch, tmp_path, refused):
    """What one process cannot be started for, another compiles; where none starts it is an error."""
    start, left = jit._Compiler, [refused]

    def compiler(env):
        if left[0]:
            left[0] -= 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return start(env)

    monkeypatch.setenv("IKPY_CACHE", str(tmp_path))
    monkeypatch.setattr(jit, "_Compiler", compiler)
    monkeypatch.setattr(jit, "_kept", {})
    monkeypatch.setattr(jit, "keep_compilers", False)
    monkeypatch.setattr(jit.cores, "n_logical", lambda: 2)
    if refused == 2:
        with pytest.raises(jit.JitError, match="no compiler process can be started: Resource temporarily unavailable"):
            jit.compile_missing(GATED)
    else:
        jit.compile_missing(GATED)
        assert all(jit.read_object(jit.cache_path(kernel)) for kernel in GATED)


def test_a_compiler_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "numba.py").write_text("raise OSError(24, 'Too many open files')")
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path))
    monkeypatch.setattr(jit, "_CHILD", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{jit._CHILD}")
    monkeypatch.setattr(jit, "_kept", {})
    with pytest.raises(jit.JitError, match=r"gated\(act=silu\): the compiler cannot be imported: OSError: .*Too many"):
        jit.compile_missing(GATED)


@posix
def test_descriptors(model, tmp_path):
    """A warm start needs six; a cold one says what it lacks."""
    run = f"$ikpy run -m {model} -p x {' '.join(RUN)}"
    assert shell(run).returncode == 0
    warm = shell(f"ulimit -n 12; {run}")
    assert warm.returncode == 0, warm.stderr
    assert "Too many open files" in one_line(shell(f"ulimit -n 8; {run}", IKPY_CACHE=str(tmp_path)))


WITHOUT_THREADS = """
import sys, threading
def refuse(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
from ikpy_llm.cli import main
sys.exit(main(sys.argv[1:], "ikpy"))
"""


@pytest.mark.parametrize(
    "words", [["run", "-p", "x", "-t", "2"], ["sweep-bench", "-c", "256", "-ub", "128", "-t", "2"]]
)
def test_commands_without_threads(model, words):
    command = [sys.executable, "-c", WITHOUT_THREADS, *words, "-m", str(model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "no thread can be started" in one_line(done)


def test_a_template_without_threads(chat):
    command = [sys.executable, "-c", WITHOUT_THREADS, "run", "-m", str(chat), "-p", "x", "-st", "-t", "1", "-n", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "no thread can be started for the time limit of the chat template" in one_line(done)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "error: there is not enough memory (a limit such as ulimit -v counts too)\n"),
        (ImportError("\nIMPORTANT: a page\n\nof advice: no memory\n\n"), "of advice: no memory\n"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "error: x cannot be imported: No module named 'x'\n"),
        (FileNotFoundError(2, "No such file or directory"), "error: the current folder: No such file or directory\n"),
        (OSError(12, "Cannot allocate memory"), "error: Cannot allocate memory\n"),
    ],
)
def test_errors_of_the_system_are_one_line(monkeypatch, capsys, error, said):
    def fail(_):
        raise error

    monkeypatch.setattr(cache, "main", fail)
    assert cli.main(["cache"], "ikpy") == 1
    found = capsys.readouterr().err
    assert found.endswith(said) and found.startswith("error: ") and found.count("\n") == 1


# --- odd places ---


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_streams_that_are_full_or_closed(model):
    run = f"$ikpy run -m {model} -p x {' '.join(RUN)}"
    expected = shell(run)
    assert expected.returncode == 0, expected.stderr
    for command in (run, "$ikpy run --help", "$ikpy cache --help", "$ikpy --version", "$ikpy kernels"):
        assert one_line(shell(f"{command} >/dev/full")) == "error: No space left on device"
    full = shell(f"{run} 2>/dev/full")
    assert (full.returncode, full.stdout) == (1, expected.stdout)
    for streams in ("<&-", "2>&-", "<&- 2>&-"):
        done = shell(f"{run} {streams}")
        assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr
    assert shell(f"{run} <&- >&- 2>&-").returncode == 0
    for command in ("bench -p 4 -n 2 -r 1 --progress", "sweep-bench -c 256 -ub 128"):
        done = shell(f"$ikpy {command} -m {model} 2>/dev/full")  # results go on where nothing can be told
        assert done.returncode == 0 and done.stdout.count("\n") > 3
    for command in (run, "$ikpy run --help", "$ikpy kernels"):
        done = shell(f"{command} | head -c 1")
        assert len(done.stdout) == 1 and "Traceback" not in done.stderr and "Broken" not in done.stderr


@posix
def test_a_folder_that_is_gone(model, chat, tmp_path):
    gone = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone;"
    done = shell(f"{gone} $ikpy run -m {model} -p x {' '.join(RUN)}")
    assert done.returncode == 0, done.stderr
    done = shell(f"{gone} $ikpy run -m {chat} -p x -st {' '.join(RUN)}")
    assert done.returncode == 0, done.stderr
    assert "No such file" in one_line(shell(f"{gone} $ikpy run -m x.gguf -p x"))
    one_line(shell(f"{gone} $ikpy run -m {model} -p x {' '.join(RUN)} --prompt-cache x"))
    one_line(shell(f"{gone} $ikpy run -m {model} -p x {' '.join(RUN)}", IKPY_CACHE="x"))


@posix
def test_odd_surroundings(model):
    run = f"$ikpy run -m {model} -p x {' '.join(RUN)}"
    for env in (
        {"TMPDIR": "/nonexistent"},
        {"TERM": "nonsense", "COLUMNS": "1"},
        {"HOME": "/nonexistent"},
        {"PATH": ""},
    ):
        done = shell(run, **env)
        assert done.returncode == 0, done.stderr
    for columns in "0", "1", "nonsense":
        done = shell("$ikpy run --help", COLUMNS=columns)
        assert done.returncode == 0 and "--predict" in done.stdout, done.stderr
    for path in ("/dev/null", "/dev/null/x", str(model)):
        assert "IKPY_CACHE" in one_line(shell(run, IKPY_CACHE=path))


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8")
def test_names_that_are_not_utf8(model, tmp_path):
    other = os.fsencode(tmp_path) + b"/\xff\xfe.gguf"
    with open(model, "rb") as source, open(other, "wb") as target:
        target.write(source.read())
    name = f"{tmp_path}/\"$(printf '\\377\\376')\".gguf"
    for env in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = shell(f"$ikpy run -m {name} -p x {' '.join(RUN)}", **env)
        assert done.returncode == 0, done.stderr
        for output in ("md", "json"):
            done = shell(f"$ikpy bench -m {name} -p 4 -n 2 -r 1 -o {output}", **env)
            assert done.returncode == 0, done.stderr
        assert "No such file" in one_line(shell(f"$ikpy run -m {name}x -p x", **env))
    for words in ("--\"$(printf '\\377')\"", "-n \"$(printf '\\377')\"", "-ctk \"$(printf '\\377')\""):
        one_line(shell(f"$ikpy run -m {model} -p x {words}"))
