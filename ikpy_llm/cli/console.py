"""What commands say besides their results: log lines and progress, both on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import time

from ikpy_llm.errors import printable

log = logging.getLogger("ikpy.cli")
SHOW_AFTER = 0.5  # seconds a job may take before a progress bar is worth importing rich for (0.1 s)

_quiet = False  # only results and errors
_bar = None  # the rich.progress.Progress that is on the screen


class _Lines(logging.Handler):
    """Log records as plain lines on stderr, above a bar that is there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except (OSError, ValueError):  # stderr is full, closed or gone
            self.handleError(record)


def setup(verbose: bool, quiet: bool = False) -> None:
    """Log records of the package go to stderr as plain lines; results go to stdout, which is made safe for any text.

    quiet: no records below errors, no notes and no bars.
    """
    global _quiet
    _quiet, handler = quiet, _Lines()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if verbose else "%(message)s"))
    log = logging.getLogger("ikpy")
    log.handlers[:] = [handler]
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")


def say(text: str) -> None:
    """A line on stderr; a bar that is on the screen stays below it."""
    bar, text = _bar, printable(text)
    with contextlib.suppress(OSError):  # of a full disk under stderr: results go on
        if bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            bar.console.out(text, highlight=False)


def error(text: str) -> None:
    """What went wrong, where a command goes on."""
    say(f"error: {text}")


def note(text: str) -> None:
    """A line for the user about something that was asked for and will not be so."""
    if not _quiet:
        say(f"note: {text}")


class Progress:
    """`progress(done, total, name)` callback: a bar on a terminal once a job takes long; elsewhere one log line.

    Calls come from one job after the other; a new job shows by another total or by `done` starting again. The bar goes
    when its job is done.
    """

    def __init__(self, live: bool = True):
        """live: redrawn ten times a second; else only when called, so that nothing else runs during a measurement."""
        self.live, self.bar, self.task = live, None, None
        self.total = self.done = -1
        self.started = 0.0

    def __call__(self, done: int, total: int, name: str = "") -> None:
        if _quiet:
            return
        now = time.monotonic()
        if total != self.total or done < self.done:
            self.close()
            self.started = now
            if name and done == 0 and not sys.stderr.isatty():  # a job that says what it is before it starts
                log.info("%s ...", name)
        self.total, self.done = total, done
        if not sys.stderr.isatty():
            return
        if done >= total:
            self.close()
        elif self.bar is None and now - self.started >= SHOW_AFTER:
            self._open(name, total)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, description=name, refresh=not self.live)

    def _open(self, name: str, total: int) -> None:
        global _bar
        self.bar = _bar = _new_bar(self.live)
        self.task = self.bar.add_task(name, total=total)
        try:
            self.bar.start()
        except RuntimeError:  # no thread can be started that draws it: there is no bar
            self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        global _bar
        if self.bar is not None:
            self.bar.stop()
            self.bar = _bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Bar:
    """A line on stderr that says how far a job is, where that is a terminal: drawn only when told, so between
    measurements, and cleared before anything else is printed.
    """

    WIDTH = 30

    def __init__(self, out=None):
        self.out, self.started = out or sys.stderr, time.monotonic()
        self.live = self.out.isatty() and not _quiet

    def show(self, done: int, total: int, text: str) -> None:
        """Draw it anew: `done` of `total` are over."""
        if not self.live:
            return
        full, passed = self.WIDTH * done // total, time.monotonic() - self.started
        left = f", {_clock(passed / done * (total - done))} left" if done else ""
        self.out.write(f"\r\033[K{'━' * full}{'╌' * (self.WIDTH - full)} {done}/{total} {text}{left}")
        self.out.flush()

    def clear(self) -> None:
        """Take it off the screen."""
        if self.live:
            self.out.write("\r\033[K")
            self.out.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _new_bar(live: bool):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, auto_refresh=live, redirect_stdout=False)
