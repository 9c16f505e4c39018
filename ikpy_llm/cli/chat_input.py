"""What the user writes in a conversation: single lines, several, pasted text; from a terminal or a pipe."""

from __future__ import annotations

import select
import sys

from ikpy_llm.cli import console, interrupt
from ikpy_llm.cli.text import MOST_BYTES, write
from ikpy_llm.errors import IkpyError

USER, RESET = "\033[1m\033[32m", "\033[0m"  # as in llama.cpp: what the user writes is bold green
PASTE = 0.02  # seconds after a line in which the rest of a pasted text arrives; nobody types a line so fast


def is_command(text: str) -> bool:
    """Is it one of the commands of chat_loop.HELP, rather than a message that begins with a slash?"""
    word, _, rest = text.strip().partition(" ")
    return (word in ("/clear", "/exit", "/quit", "/help") and not rest) or word == "/save"


class Reader:
    """Messages that the user writes, one per line, or several lines with the rules of chat_loop.HELP."""

    def __init__(self, multiline: bool, color: bool, simple: bool):
        """simple: no line editing and no color."""
        self.multiline, self.interrupted = multiline, False
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.edit = self.terminal and not simple
        self.color = color and self.edit
        if self.edit:
            _edit_lines()
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")

    def read(self) -> str | None:
        """The next message, None at the end of the input (on a terminal after Ctrl-C twice, too).

        IkpyError for more than MOST_BYTES.
        """
        lines: list[str] = []
        n_bytes, pasted = 0, False
        while True:
            try:
                interrupt.wait_for_next()
                line, pasted = self._line("> " if not lines else "... ", pasted)
            except KeyboardInterrupt:
                if not self.terminal:
                    raise
                print(file=sys.stderr)
                if self.interrupted:
                    return None
                self.interrupted = True
                console.note("/exit, Ctrl-D or Ctrl-C again ends")
                lines, n_bytes, pasted = [], 0, False
                continue
            self.interrupted = False
            if line is None:
                return "\n".join(lines) if lines else None
            n_bytes += len(line.encode("utf-8", "surrogatepass")) + 1
            if n_bytes > MOST_BYTES:
                raise IkpyError(f"a message on stdin is longer than {MOST_BYTES >> 20} MiB, the most that is accepted")
            if not lines and not pasted and is_command(line):
                return line
            more = pasted or line.endswith("\\") != self.multiline
            lines.append(line if pasted else line.removesuffix("\\"))
            if not more:
                return "\n".join(lines)

    def _line(self, prompt: str, pasted: bool) -> tuple[str | None, bool]:
        """(a line, or a pasted text with all its lines; whether it goes on, as the rest of a paste waits already).

        pasted: it goes on itself; else what is there before the prompt was typed early, and is no paste.
        """
        early = self.terminal and not pasted and _waits(0)
        line = self._typed(prompt)
        return line, line is not None and self.terminal and not early and _waits(PASTE)

    def _typed(self, prompt: str) -> str | None:
        if self.edit:
            try:
                return input(f"\001{USER}\002{prompt}" if self.color else prompt)
            except EOFError:
                return None
            finally:
                if self.color:
                    write(RESET)
        if self.terminal:
            write(prompt)
        line = sys.stdin.readline(MOST_BYTES)  # characters; what has no end, such as a device, is too long by then
        return line.removesuffix("\n").removesuffix("\r") if line else None


def _edit_lines() -> None:
    """Line editing and history for input(), and pasted text as one line that holds line ends.

    Of the two libraries behind the module, GNU readline asks the terminal to mark what is pasted; editline cannot, so
    there (and on terminals that do not mark it) `_waits` tells.
    """
    try:
        import readline
    except ImportError:
        return
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")


def _waits(seconds: float) -> bool:
    """Is there something to read on a terminal within so many seconds?"""
    try:
        return bool(select.select([sys.stdin], [], [], seconds)[0])
    except (OSError, ValueError):  # on Windows select knows only sockets
        return False
