"""A process on a pseudo-terminal: what it shows, keys pressed, and what is left on its screen."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import KEPT, ROOT

PASTE, PASTE_END = "\x1b[200~", "\x1b[201~"  # what a terminal puts around pasted text once it was asked to


class Terminal:
    """`python -m ikpy_llm WORDS...` (or `command`) on a pseudo-terminal. It does not outlive its `with` block."""

    def __init__(self, *words, command=None, term="xterm", env=None):
        self.master, slave = pty.openpty()
        command = command or [sys.executable, "-m", "ikpy_llm", *map(str, words)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("IKPY_", "LLAMA_ARG_")) or k in KEPT}
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as a shell's background job, and inherited
        if ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            start_new_session=True,
            env={**clean, "TERM": term, "PYTHONPATH": str(ROOT), **(env or {})},
        )
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(slave)
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()  # no effect once it has ended
        self.process.wait()
        os.close(self.master)

    def until(self, pattern, seconds=300):
        """Read until the text matches from here on; what came."""
        start, end = len(self.text), time.monotonic() + seconds
        os.set_blocking(self.master, False)
        while not re.search(pattern, self.text[start:]) and time.monotonic() < end:
            try:
                data = os.read(self.master, 4096)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            except OSError:  # the process has ended
                break
            self.text += data.decode("utf-8", "replace")
        assert re.search(pattern, self.text[start:]), self.text[-3000:]
        return self.text[start:]

    def idle(self):
        """Wait until the process waits for keys: Python's input() does not see a Ctrl-C just before."""
        stat, quiet, end = Path(f"/proc/{self.process.pid}/stat"), 0, time.monotonic() + 300
        while quiet < 10 and time.monotonic() < end:
            time.sleep(0.02)
            waits = not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "S"
            quiet = quiet + 1 if waits else 0

    def interrupt(self):
        """Ctrl-C, which a terminal sends to the command and to its child processes."""
        os.killpg(self.process.pid, signal.SIGINT)

    def press(self, keys):
        """Write them to the terminal, as a keyboard does."""
        os.write(self.master, keys.encode())

    def end(self, seconds=300):
        """Read to the end of the process; its exit code."""
        end = time.monotonic() + seconds
        os.set_blocking(self.master, False)
        while time.monotonic() < end:
            try:
                data = os.read(self.master, 4096)
            except BlockingIOError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.01)
                continue
            except OSError:
                break
            self.text += data.decode("utf-8", "replace")
        return self.process.wait(max(1.0, end - time.monotonic()))


def screen(text: str) -> list[str]:
    """The lines that are left after a terminal has shown `text`: with what moves the cursor and erases."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+|\x1b", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b["):
            count, what = re.fullmatch(r"\x1b\[([?\d;]*)([A-Za-z])", part).groups()
            if what == "A":
                row = max(0, row - int(count or 1))
            elif what == "K":
                lines[row] = "" if count == "2" else lines[row][:column]
        elif part != "\x1b":
            old = lines[row].ljust(column)
            lines[row] = old[:column] + part + old[column + len(part) :]
            column += len(part)
    return lines
