"""Where ikpy keeps compiled kernels and fetched models, and whose machine code it loads. Imports nothing heavy."""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import sys
from pathlib import Path

from ikpy_llm import files
from ikpy_llm.errors import IkpyError

log = logging.getLogger("ikpy.folders")
HAS_OWNERS = hasattr(os, "getuid")  # not on Windows, where a user's folders are the user's own anyway
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
FOLDER_MODE, FILE_MODE = 0o755, 0o644  # all may read, the owner writes: a cache filled by root serves other users
MOST_CODE = 64 << 20  # bytes of a file with code; the largest kernels have 100 KB
MARKER = "CACHEDIR.TAG"  # https://bford.info/cachedir/
MARK = b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by ikpy; `ikpy cache clear --all` empties it.\n"


def root() -> Path:
    """Folder of everything ikpy caches: IKPY_CACHE, or the user's cache folder, or where no home folder can be written
    a private one in the system's folder for temporary files. IkpyError where there is none."""
    if path := os.environ.get("IKPY_CACHE"):
        try:
            return Path(path).expanduser()
        except RuntimeError:
            raise IkpyError(f"IKPY_CACHE={path}: there is no such home folder; set it to a full path") from None
    return _default(os.environ.get("HOME"), os.environ.get("XDG_CACHE_HOME"))


@functools.cache
def _default(*_environment) -> Path:
    folder = home()
    if folder is not None:
        return folder
    folder = private()
    log.warning("no home folder can be written: kernels and models are kept in %s; IKPY_CACHE sets another", folder)
    return folder


def home() -> Path | None:
    """ikpy's folder in the user's cache folder; None where there is no home or it cannot be used, as in containers
    that are run with the number of a user nobody knows."""
    try:
        folder = _user_cache()
    except (RuntimeError, KeyError):
        return None
    if not folder.is_absolute():  # the home folder is unknown: "~" stands in the path
        return None
    if os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK):
        return folder  # though perhaps not to be written: what it has can be used
    there = next(p for p in folder.parents if os.path.exists(p))
    return folder if os.access(there, os.W_OK | os.X_OK) else None


def _user_cache() -> Path:
    if sys.platform == "linux":  # as platformdirs does, which takes 5 ms to import
        named = os.environ.get("XDG_CACHE_HOME", "").strip()
        return Path(named if os.path.isabs(named) else os.path.expanduser("~/.cache")) / "ikpy"
    import platformdirs

    return Path(platformdirs.user_cache_dir("ikpy", appauthor=False))


def private() -> Path:
    """A folder below that for temporary files which only this user can read and write. IkpyError where others made it
    or nothing can be written."""
    import tempfile

    try:
        folder = Path(tempfile.gettempdir()) / f"ikpy-{os.getuid() if HAS_OWNERS else 'cache'}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise IkpyError(f"no folder to cache in: {error}; set IKPY_CACHE to a folder that can be written") from None
    if not stat.S_ISDIR(found.st_mode) or (HAS_OWNERS and (found.st_uid != os.getuid() or found.st_mode & 0o077)):
        raise IkpyError(f"{folder} is not a private folder of this user; set IKPY_CACHE to one that is")
    return folder


def kernels() -> Path:
    """Folder of the object cache: in `root`, or in a private folder where code from there could be anybody's."""
    folder = root() / "kernels"
    why = distrusted(folder)
    return folder if why is None else _instead_of(folder, why)


@functools.cache
def _instead_of(folder: Path, why: str) -> Path:
    other = private() / "kernels"
    log.warning("%s: %s, so its code is not loaded and kernels are kept in %s", folder, why, other)
    return other


def distrusted(folder: Path) -> str | None:
    """Why code in a folder may be others'; None where only this user and root can have put it there."""
    try:
        return _others(folder.stat())
    except OSError:
        return None  # it is not there, or nothing in it can be read


def _others(found: os.stat_result) -> str | None:
    """Why what has this status may be others'; None where it is this user's or root's and nobody else can write it."""
    if not HAS_OWNERS:
        return None
    if found.st_mode & OTHERS_WRITE:
        return "others can write there (chmod go-w helps)"
    return None if found.st_uid in (0, os.getuid()) else f"it belongs to another user ({found.st_uid})"


def read_code(path: Path) -> bytes:
    """The bytes of a regular file. Foreign where others can have put it there; OSError where it cannot be read.

    A link is not followed. What is looked at is what is open, the folder too: a path may lead elsewhere a moment later.
    """
    folder, name = None, path
    if os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY"):
        folder, name = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path.name
    try:
        if folder is not None:
            _check(os.fstat(folder))
        with os.fdopen(files.opened(name, follow=False, folder=folder), "rb") as file:
            found = os.fstat(file.fileno())
            _check(found)
            if found.st_size > MOST_CODE:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return file.read()
    finally:
        if folder is not None:
            os.close(folder)


class Foreign(OSError):
    """Code that others can have written; `strerror` says why."""


def _check(found: os.stat_result) -> None:
    if why := _others(found):
        raise Foreign(errno.EPERM, why)


def make(folder: Path) -> None:
    """Make a folder, with those above it, that all may read and its owner may write, whatever the umask adds."""
    if folder.is_dir():
        return
    if folder.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    make(folder.parent)
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def make_marked(folder: Path) -> None:
    """The same, with a file in it that says that ikpy made it (and that backups may leave it out)."""
    if not folder.is_dir():
        make(folder)
        files.write(folder / MARKER, MARK, follow=False, mode=FILE_MODE)


def is_marked(folder: Path) -> bool:
    """Did ikpy make the folder?"""
    try:
        with os.fdopen(files.opened(folder / MARKER, follow=False), "rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False
