"""What went wrong while a kernel was compiled, in one line: file and line of the source, and the reason.

Numba's own message has a paragraph for every function between the kernel and the mistake; a mistake that it did not
foresee has no place at all.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from numba.core import ir

from ikpy_llm.errors import IkpyError

_SOURCES = Path(__file__).parents[3]  # what file names are relative to
_NOISE = re.compile(r"Failed in \w+ mode pipeline|During: |\s*$")


def one_line(error: BaseException) -> str:
    """The error that compiling one kernel ended with."""
    if isinstance(error, IkpyError):
        return str(error)
    chain = [*_chain(error)]
    place = _named(error) or next(filter(None, map(_place, chain)), None)
    reason = _reason(next((e for e in chain if str(e).strip()), error))
    return f"{place}: {reason}" if place else reason


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those it came from, the first cause first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return reversed(seen)


def _named(error: BaseException) -> str | None:
    """The first file and line that the message names: that of the innermost function."""
    found = re.search(r'File "([^"]+)", line (\d+)', str(error))
    return found and _relative(found[1], found[2])


def _relative(file: str, line) -> str:
    path = Path(os.path.abspath(file))  # Numba's are relative to the current folder
    return f"{path.relative_to(_SOURCES).as_posix() if path.is_relative_to(_SOURCES) else path}:{line}"


def _place(error: BaseException) -> str | None:
    """File and line of the source that Numba was looking at when the error came up: the innermost frame that knows."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name in ("loc", "inst", "self"):
            value = frame.f_locals.get(name)
            loc = value if isinstance(value, ir.Loc) else getattr(value, "loc", None)
            if isinstance(loc, ir.Loc) and Path(loc.filename).is_relative_to(_SOURCES):
                found = loc
                break
    return found and _relative(found.filename, found.line)


def _reason(error: BaseException) -> str:
    """The first line of a message that says something; of errors that are not Numba's with the kind."""
    everything = str(error).splitlines()
    lines = [line.strip() for line in everything if not _NOISE.match(line)]
    text = lines[0] if lines else " ".join(str(error).split())
    if text.endswith("signature:"):  # what was called with which types
        text += next((line.replace(">>>", "") for line in everything if ">>>" in line), "").rstrip()
    ours = not type(error).__module__.startswith("numba")
    return f"{type(error).__name__}: {text}" if ours else text
