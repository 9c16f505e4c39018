"""What docs/security.md says of files, network and processes, seen by Python's own audit hook; and that it names tests
that exist.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tiny_chat
import tiny_model
from conftest import KEPT, ROOT

from ikpy_llm.kernels.compiler import folders

# Read by every Python that starts with this folder in PYTHONPATH: a line for each event that is not harmless.
AUDIT = """
import json, os, sys
_log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def _hook(name, args):
    if name == "open" and isinstance(args[0], (str, bytes)):
        writes = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        event = "write" if writes else "read", os.fsdecode(args[0])
    elif name.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")):
        event = "network", name
    elif name in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"):
        event = "process", [str(word) for word in args[1]] if name == "subprocess.Popen" else name
    elif name in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate"):
        event = "write", os.fsdecode(args[0]) if isinstance(args[0], (str, bytes)) else str(args[0])
    else:
        return
    os.write(_log, (json.dumps(event) + "\\n").encode())
sys.addaudithook(_hook)
"""


@pytest.fixture
def audited(tmp_path):
    """Runs ikpy; what it and its children did: kind of event -> places."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(AUDIT, encoding="utf-8")

    def run(*words) -> dict[str, list]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("IKPY_", "LLAMA_ARG_")) or k in KEPT}
        env = clean | {"PYTHONPATH": os.pathsep.join([str(hooks), str(ROOT)]), "AUDIT_LOG": str(log)}
        command = [sys.executable, "-m", "ikpy_llm", *map(str, words)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        found: dict[str, list] = {}
        for kind, what in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            found.setdefault(kind, []).append(what)
        return found

    return run


OWN = [
    ROOT,
    *map(Path, {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}),
    "/proc",
    "/sys",
    "/dev",
    "/etc",
]


def is_below(path: str, folders: list) -> bool:
    found = os.path.realpath(path)
    return any(found == os.path.realpath(f) or found.startswith(os.path.realpath(f) + os.sep) for f in folders)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="folders of Linux")
@pytest.mark.parametrize("how", ["a text", "a chat", "refused", "a benchmark"])
def test_a_model_file_reaches_no_other_files_network_or_processes(audited, tmp_path, how):
    change = {"general.url": "http://127.0.0.1:9/x", "general.name": "../../etc/passwd", "split.count": 1}
    path = tmp_path / "model.gguf"
    if how == "a chat":
        tiny_chat.write(path)
    else:
        tiny_model.write(path, change | ({"llama.block_count": 5} if how == "refused" else {}))
    words = {
        "a text": ["run", "-p", "x", "-n", "2"],
        "a chat": [
            "run",
            "-p",
            "x",
            "-st",
            "-n",
            "2",
            "--chat-template",
            "{% for m in messages %}{{ m.content }}{% endfor %}",
        ],
        "refused": ["run", "-p", "x"],
        "a benchmark": ["bench", "-p", "4", "-n", "1", "-r", "1"],
    }[how]
    audited(*words, "-m", path)  # kernels are there afterwards
    found = audited(*words, "-m", path)
    assert not found.get("network")
    assert all(is_below(name, ["/dev/null"]) for name in found.get("write", []))
    assert all(is_below(name, [*OWN, folders.root(), path, tmp_path / "hooks"]) for name in found["read"])
    started = found.get("process", [])
    assert len(started) == (how == "a chat") and all(words[:3] == [sys.executable, "-I", "-S"] for words in started)


def test_the_document_names_tests_that_exist():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)\.py`", text))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / "tests" / f"{name}.py").is_file()]
