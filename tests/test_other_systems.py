"""macOS, Windows and a Linux without /proc, as far as Linux can play them: what they lack is taken away before anything
is imported, in the process itself and in its compilers. Commands give the same text, and the log says what they lack.
"""

import os
import re
import subprocess
import sys

import pytest
import tiny_model

# Taken away from os, mmap and signal; modules that cannot be imported; the keys are sys.platform.
LACKS = {
    "linux": {"os": "", "mmap": "", "signal": "", "modules": ""},  # in a change of root without /proc and /sys
    "darwin": {
        "os": "sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler posix_fadvise pipe2 memfd_create "
        "eventfd getrandom setresuid getresuid copy_file_range splice",
        "mmap": "MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTFORK MADV_DOFORK MADV_REMOVE MADV_HWPOISON MAP_POPULATE "
        "MAP_NORESERVE MAP_STACK",
        "signal": "SIGPWR SIGPOLL SIGSTKFLT",
        "modules": "",
    },
    "win32": {
        "os": "sched_getaffinity sched_setaffinity sched_yield sched_getparam posix_fadvise posix_fallocate pipe2 "
        "memfd_create register_at_fork fork forkpty pread preadv pwrite pwritev readv writev getuid geteuid getgid "
        "getegid getgroups setuid uname getloadavg sysconf confstr statvfs fstatvfs fchmod fchown chown lchown mkfifo "
        "mknod getpgid getpgrp setsid killpg nice sync wait3 wait4 ctermid ttyname openpty O_NONBLOCK O_CLOEXEC "
        "O_DIRECTORY O_NOFOLLOW O_SYNC",
        "mmap": "MAP_PRIVATE MAP_ANONYMOUS MAP_ANON MAP_SHARED PROT_READ PROT_WRITE PROT_EXEC MADV_DONTNEED "
        "MADV_HUGEPAGE MADV_WILLNEED MADV_SEQUENTIAL MADV_RANDOM MADV_NORMAL MADV_FREE MAP_POPULATE MAP_NORESERVE",
        "signal": "SIGALRM SIGHUP SIGKILL SIGPIPE SIGQUIT SIGTSTP SIGCONT SIGSTOP SIGUSR1 SIGUSR2 SIGWINCH SIGCHLD "
        "setitimer pthread_sigmask pthread_kill sigwait ITIMER_REAL siginterrupt",
        "modules": "resource readline termios tty pty pwd grp",
    },
}
# Libraries that ask for the platform when they are imported are imported first. Files of Linux are not there.
SITE = """
import ctypes, os, pathlib, sys
if not os.environ.get("IKPY_TEST_WHOLE"):
    import {first}
    lacks = {lacks!r}
    if {platform!r} != "linux":  # psutil works on every system
        psutil.virtual_memory = lambda found=psutil.virtual_memory(): found
    for module in "os", "posix", "mmap", "signal":
        for name in lacks["os" if module == "posix" else module].split():
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    for name in lacks["modules"].split():
        sys.modules[name] = None
    sys.platform = {platform!r}

    def hidden(audited, arguments):
        if audited == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.fspath(arguments[0])
            if (path if isinstance(path, str) else path.decode()).startswith(("/proc/", "/sys/")):
                raise FileNotFoundError(2, "No such file or directory", path)

    sys.addaudithook(hidden)
"""
FIRST = "mmap, signal, subprocess, platform, threading, psutil, numpy, llvmlite.binding, platformdirs, tempfile, uuid"
AFFINITY = "this system has no way to bind threads to cores: it moves them as it likes"


@pytest.fixture(scope="module", params=LACKS)
def lacking(request, tmp_path_factory):
    """Runs `ikpy WORDS...` on a system that lacks things; whole=True on this one."""
    folder = tmp_path_factory.mktemp(request.param)
    text = SITE.format(first=FIRST, lacks=LACKS[request.param], platform=request.param)
    (folder / "sitecustomize.py").write_text(text)

    def run(*words, whole=False, code=None, **kwargs):
        path = os.pathsep.join([str(folder), *sys.path])
        env = os.environ | {"PYTHONPATH": path, "IKPY_TEST_WHOLE": "1" * whole, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, *(["-c", code] if code else ["-m", "ikpy_llm"]), *map(str, words)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, **kwargs)

    run.system = request.param
    return run


@pytest.fixture(scope="module")
def model(folder):
    return tiny_model.write(folder / "tiny.gguf")


def test_they_are_taken_away(lacking):
    """The test's own means work."""
    code = "import os, sys; print(sys.platform, hasattr(os, 'sched_getaffinity'), os.path.exists('/proc/meminfo'))\n"
    code += "try: open('/proc/meminfo')\nexcept OSError as error: print(error)"
    can_bind = str(lacking.system == "linux")
    assert lacking(code=code).stdout.splitlines()[0].split()[:2] == [lacking.system, can_bind]
    assert "No such file" in lacking(code=code).stdout
    assert lacking(code=code, whole=True).stdout.split()[:2] == [sys.platform, "True"]


def test_every_module_is_imported(lacking):
    code = """
import importlib, pkgutil, ikpy_llm
names = [m.name for m in pkgutil.walk_packages(ikpy_llm.__path__, "ikpy_llm.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))"""
    done = lacking(code=code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


@pytest.mark.slow
def test_text_is_the_same(lacking, model, tmp_path):
    """From an empty cache, so that kernels are compiled there too; two threads bound to cores, where they can be."""
    words = "run", "-m", model, "-p", "the", "-n", 12, "--temp", 0, "-t", 2
    here = lacking(*words, whole=True)
    there = lacking(*words, cwd=tmp_path)
    assert there.returncode == 0 and "Traceback" not in there.stderr, there.stderr[-2000:]
    assert there.stdout == here.stdout != ""
    code = (
        f"import logging; logging.basicConfig(level=logging.INFO); import ikpy_llm\n"
        f"from ikpy_llm.engine.step.workers import Workers\nWorkers(2, pin=True).close()\n"
        f"print(ikpy_llm.Model.load({str(model)!r}, threads=2).generate('the', n_predict=12, temp=0))"
    )
    done = lacking(code=code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count(AFFINITY) == (lacking.system != "linux")
    assert AFFINITY not in lacking(code=code, whole=True).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "-m", "MODEL", "-cnv", "-n", 4, "--temp", 0, "--chat-template", "chatml"], "the\n/exit\n"),
        (["run", "-m", "MODEL", "-p", "the", "-n", 4, "--prompt-cache", "FOLDER/session"], ""),
        (["run", "-m", "MODEL", "-f", "-", "-n", 4], "the"),
        (["bench", "-m", "MODEL", "-p", 8, "-n", 4, "-r", 1, "-o", "json"], ""),
        (["sweep-bench", "-m", "MODEL", "-c", 256, "-ub", 64], ""),
        (["kernels", "list"], ""),
        (["kernels", "show", "add"], ""),
        (["cache"], ""),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_every_command_ends_as_it_does_here(lacking, model, tmp_path, words, said):
    words = [str(w).replace("MODEL", str(model)).replace("FOLDER", str(tmp_path)) for w in words]
    here, there = (lacking(*words, input=said, whole=whole) for whole in (True, False))
    assert "Traceback" not in there.stderr, there.stderr[-2000:]
    assert there.returncode == here.returncode, there.stderr[-2000:]
    # A log line about what is missing may come besides; figures differ.
    assert len(re.findall(r"^error", there.stderr, re.M)) == len(re.findall(r"^error", here.stderr, re.M))
