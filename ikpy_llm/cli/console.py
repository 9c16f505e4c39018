"""What commands say besides their results: log lines and progress, both on stderr."""

from __future__ import annotations

import logging
import sys
import time

log = logging.getLogger("ikpy.cli")
SHOW_AFTER = 0.5  # seconds a job may take before a progress bar is worth importing rich for (0.1 s)


def setup(verbose: bool) -> None:
    """Log records of the package go to stderr as plain lines; results go to stdout, which is made safe for any text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if verbose else "%(message)s"))
    log = logging.getLogger("ikpy")
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")


def note(text: str) -> None:
    """A line for the user about something that was asked for and will not be so."""
    print(f"note: {text}", file=sys.stderr)


class Progress:
    """`progress(done, total, name)` callback: a bar on a terminal once a job takes long; elsewhere one log line.

    Calls come from one job after the other; a new job shows by another total or by `done` starting again.
    """

    def __init__(self, live: bool = True):
        """live: redrawn ten times a second; else only when called, so that nothing else runs during a measurement."""
        self.live, self.bar, self.task = live, None, None
        self.total = self.done = -1
        self.started = 0.0

    def __call__(self, done: int, total: int, name: str = "") -> None:
        now = time.monotonic()
        if total != self.total or done < self.done:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.started, self.task = now, None
            if name and done == 0 and not sys.stderr.isatty():  # a job that says what it is before it starts
                log.info("%s ...", name)
        self.total, self.done = total, done
        if not sys.stderr.isatty():
            return
        if self.bar is None and done < total and now - self.started >= SHOW_AFTER:
            self.bar = _bar(self.live)
            self.bar.start()
        if self.bar is not None:
            if self.task is None:
                self.task = self.bar.add_task(name, total=total)
            self.bar.update(self.task, completed=done, description=name, refresh=not self.live)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

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
        self.live = self.out.isatty()

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


def _bar(live: bool):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=live)
