"""Chat templates of strangers: rendered by a child process with limits of time and memory."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

from ikpy_llm import forks, system
from ikpy_llm.errors import IkpyError

log = logging.getLogger("ikpy.chat")
SECONDS = 2.0  # for all renderings of a conversation; the largest of 113 public templates takes 0.2 with compiling
MIB = 256  # of memory, beside what Python and Jinja take
CHARACTERS = 1 << 24  # that a template may write
START_SECONDS = 60  # until Python and Jinja are loaded: 0.3 on a machine that does nothing else
_LENGTH = struct.Struct("<Q")
_CODE = "import sys; sys.path[:0] = {paths!r}; from ikpy_llm.text.chat.child import main; main()"


class Child:
    """A template in a process of its own, which starts with the first rendering and ends with this object."""

    def __init__(self, text: str):
        self._text = text
        forks.lock(self, "_lock", threading.Lock)
        self._process: subprocess.Popen | None = None
        self._owner, self._left, self._here = 0, SECONDS, None
        # Sentences: an exception that is kept holds, with its traceback, the frames that hold it.
        self._unreadable = ""
        self._stopped = ""  # this conversation ended the process

    def begin(self) -> None:
        """A new conversation: it has all of the time."""
        self._left, self._stopped = SECONDS, ""

    def render(self, values: dict) -> str:
        """The text for these variables. IkpyError for whatever goes wrong, running out of time or memory too."""
        with self._lock:
            if self._here is not None:
                return self._here.render(values)
            try:
                request = pickle.dumps(values)
            except Exception as error:  # of the class of a variable
                raise IkpyError(f"the chat template's variables cannot be handed to its process: {error}") from None
            if why := self._unreadable or self._stopped:
                raise IkpyError(why)
            if self._process is None or self._owner != os.getpid():
                try:
                    self._start()
                except OSError as error:
                    return self._without_child(error, values)
            return self._ask(request)

    def _start(self) -> None:
        """Start the process and have it read the template."""
        paths = [str(Path(__file__).parents[3]), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE.format(paths=paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        self._owner = os.getpid()
        weakref.finalize(self, _end, self._process, self._owner)
        if self._answer(START_SECONDS) is None:
            self._end()
            raise OSError("it does not start")
        try:
            self._ask(pickle.dumps(self._text))
        except IkpyError as error:
            self._unreadable = str(error)
            self._end()
            raise

    def _ask(self, request: bytes) -> str:
        """What the process answers; it is ended where the time is over."""
        start = time.monotonic()
        try:
            _write(self._process.stdin, b"+", request)
            answer = self._answer(self._left)
        except OSError:  # it is gone
            answer = None
        self._left -= time.monotonic() - start
        if answer is None:
            self._end()
            if self._left <= 0:
                self._stopped = f"the chat template takes longer than {SECONDS:g} s and was stopped"
            else:
                self._stopped = f"the chat template's process ended; it may take {MIB} MiB of memory"
            raise IkpyError(self._stopped)
        good, text = answer
        if not good:
            raise IkpyError(text)
        return text

    def _answer(self, seconds: float) -> tuple[bool, str] | None:
        """What the process writes next, None where it has ended or takes longer than so many seconds."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        try:
            system.start(timer, "the time limit of the chat template")
        except IkpyError:
            self._end()
            raise
        try:
            kind, data = _read(self._process.stdout)
        except (OSError, EOFError):
            return None
        finally:
            timer.cancel()
        return kind == b"+", data.decode("utf-8", "surrogatepass")

    def _end(self) -> None:
        if self._process is not None:
            _end(self._process, self._owner)
            self._process = None

    def _without_child(self, error: OSError, values: dict) -> str:
        from ikpy_llm.text.chat.jinja import Program

        log.warning("no process can be started for the chat template (%s): it runs here, without limits", error)
        self._here = Program(self._text)
        return self._here.render(values)


def _end(process: subprocess.Popen, owner: int) -> None:
    """End a process and forget it; not in a fork of the one that started it."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


def _write(pipe, kind: bytes, data: bytes) -> None:
    pipe.write(kind + _LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _read(pipe) -> tuple[bytes, bytes]:
    head = pipe.read(1 + _LENGTH.size)
    if len(head) < 1 + _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head[1:])
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return head[:1], data


# In the child


def main() -> None:
    """Read a template, then variables, and answer each with a text or with what is wrong, until the input ends."""
    from ikpy_llm.text.chat.jinja import Program, environment

    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    environment()  # loads Jinja before memory is limited
    _limit_memory()
    _write(answers, b"+", b"")
    program = None
    while True:
        try:
            _, data = _read(requests)
        except EOFError:
            return
        kind, text = b"-", ""
        try:
            _limit_time()
            values = pickle.loads(data)
            if program is None:
                program = Program(values)
            else:
                text = program.render(values)
            kind = b"+"
            if len(text) > CHARACTERS:
                kind, text = b"-", f"the chat template writes {len(text)} characters; up to {CHARACTERS} are accepted"
        except IkpyError as error:
            text = str(error)
        except MemoryError:  # before or after the template runs
            text = "the chat template takes more memory than it may"
        except Exception as error:  # variables of classes that are not known here
            text = f"the chat template's variables cannot be read by its process: {' '.join(str(error).split())}"
        _write(answers, kind, text.encode("utf-8", "surrogatepass"))


def _limit_memory() -> None:
    """MIB more than now; nothing where the system cannot."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        limit = now + (MIB << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass


def _limit_time() -> None:
    """Twice SECONDS of computing from now on, should the parent be gone; nothing where the system cannot."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + 2 * SECONDS) + 1, hard))
    except (ImportError, OSError, ValueError):
        pass
