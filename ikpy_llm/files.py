"""Files of the user: what is read is a regular file, what is written is there whole or not at all. Every file that the
program writes is written here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ikpy_llm.errors import IkpyError

TEMPORARY = ".writing-"  # names of files that are not complete begin so; 16 hexadecimal digits follow
KINDS = {
    stat.S_IFDIR: "Is a directory",
    stat.S_IFCHR: "Is a character device",
    stat.S_IFBLK: "Is a block device",
    stat.S_IFIFO: "Is a FIFO",
    stat.S_IFSOCK: "Is a socket",
    stat.S_IFLNK: "Is a symbolic link",
}
HEAD = 4096  # bytes at the start of a file that tell what kind it is


class Kind(NamedTuple):
    """What a writer makes, and so what it may replace."""

    name: str
    start: bytes  # regular expression that the start of every file of this kind matches


def _flags(*names: str) -> int:
    """Those of the flags of open(2) that this system has."""
    return sum(getattr(os, name, 0) for name in names)


_NEW = _flags("O_WRONLY", "O_CREAT", "O_EXCL", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
# O_NONBLOCK: of a FIFO that nobody has opened at its other end, opening does not wait.
_READ = _flags("O_RDONLY", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
_WRITE = _flags("O_WRONLY", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")


def only_regular(found: os.stat_result) -> None:
    """OSError for the status of what is not a regular file."""
    if not stat.S_ISREG(found.st_mode):
        what = KINDS.get(stat.S_IFMT(found.st_mode), "Is of an unknown kind")
        raise OSError(errno.EINVAL, f"{what}, not a regular file")


def opened(path, *, follow: bool = True, folder: int | None = None) -> int:
    """The descriptor of a regular file, to read; OSError for everything else.

    follow: a symbolic link may be its last part. folder: descriptor of the folder that the path counts from.
    A device is not even opened, which can have effects; what was opened is looked at again, as a path may change.
    """
    only_regular(os.stat(path, dir_fd=folder, follow_symlinks=follow))
    fd = os.open(path, _READ | (0 if follow else _flags("O_NOFOLLOW")), dir_fd=folder)
    try:
        only_regular(os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def written(
    path,
    *,
    flag: str = "",
    kind: Kind | None = None,
    streams: bool = False,
    follow: bool = True,
    mode: int = 0o666,
    exact: bool = False,
    durable: bool = False,
) -> Iterator[BinaryIO]:
    """A binary file whose contents stand under `path` when the block has ended, all at once; after an error or Ctrl-C
    there is what was there before, and nothing else. IkpyError, one line, where it cannot be written.

    Only what is absent or a regular file is replaced. A link stays, and its target is replaced; without `follow` the
    link is. A replaced file leaves its owner and permissions to the new one; `mode`, less the umask, is that of a new
    file, or with `exact` of every one. kind: an older file that is neither empty nor of this kind is an error.
    streams: FIFOs, character devices and this process's own output are written into as they are. durable: it outlives a
    crash of the system, too. flag: what comes before the path in messages.
    """
    with _told(flag, path):
        found, final = _look(path, follow)
        into = streams and found is not None and (_is_stream(found) or _output(found) is not None)
        if not into:
            _may_replace(found, final, follow, kind)
        folder = os.path.dirname(final)
        # It may be that the file can be written and its folder cannot, as where a container is given a single file.
        in_place = streams and found is not None and not os.access(folder, os.W_OK)
    part = "" if into or in_place else os.path.join(folder, TEMPORARY + os.urandom(8).hex())
    try:
        with _told(flag, path):
            if part:
                fd = os.open(part, _NEW, mode)
                _permit(fd, None if exact else found, mode if exact else None)
            else:
                fd = _stream(path, found) if into else os.open(final, _WRITE | os.O_TRUNC)
        with io.BufferedWriter(_File(fd, functools.partial(_told, flag, path))) as file:
            yield file
            file.flush()
            if part and durable:
                with _told(flag, path):
                    os.fsync(fd)
        if part:
            with _told(flag, path):
                os.replace(part, final)
    except BaseException:
        if part:
            with contextlib.suppress(OSError):
                os.unlink(part)
        raise
    if part and durable:
        _keep_name(folder)


def write(path, data: bytes, **how) -> None:
    """Write a whole file; `how` as in `written`."""
    with written(path, **how) as file:
        file.write(data)


def check(path, *, flag: str = "", kind: Kind | None = None, streams: bool = False, to_read: bool = False) -> None:
    """IkpyError if `written` could not write there as things are now; to_read: if `opened` would refuse what is there.

    For what is written at the end of a long run.
    """
    with _told(flag, path):
        found, final = _look(path, follow=True)
        if to_read:
            if found is not None:
                only_regular(found)
            return
        if streams and found is not None and (_is_stream(found) or _output(found) is not None):
            return
        _may_replace(found, final, True, kind)
        folder = os.path.dirname(final)
        os.stat(folder)  # is it there?
        if not os.access(folder, os.W_OK) and not (streams and found is not None):
            raise PermissionError(errno.EACCES, f"No file can be written in {folder}")


@contextlib.contextmanager
def _told(flag: str, path):
    """An error of the system as one line. Only of what is done here: the block of `written` has its own."""
    try:
        yield
    except OSError as error:
        name = os.fspath(path) or '""'
        raise IkpyError(f"{flag} {name}: {error.strerror or error}".lstrip()) from None


class _File(io.FileIO):
    """Whose errors of writing are told."""

    def __init__(self, fd: int, told):
        super().__init__(fd, "wb")
        self.told = told

    def write(self, data):
        with self.told():
            return super().write(data)


def _look(path, follow: bool) -> tuple[os.stat_result | None, str]:
    """What is at a path, None if nothing; and the path that is replaced, in full."""
    if not os.fspath(path):  # which would be the current folder
        raise OSError(errno.ENOENT, "The name of a file is empty")
    path = os.path.abspath(os.fspath(path))
    try:
        found = os.stat(path, follow_symlinks=follow)
    except FileNotFoundError:
        found = None
    return found, os.path.realpath(path) if follow else path


def same(one, other) -> bool:
    """Do two paths name one file, through links or under several names, or would they once it is there?"""
    (found, path), (found_too, path_too) = _look(one, follow=True), _look(other, follow=True)
    return path == path_too or (found is not None and found_too is not None and os.path.samestat(found, found_too))


def _may_replace(found: os.stat_result | None, final: str, follow: bool, kind: Kind | None) -> None:
    """OSError where another kind of file stands, one that may not be written, this process's output, or one without a
    name.
    """
    if found is None or (not follow and stat.S_ISLNK(found.st_mode)):
        return
    only_regular(found)
    if follow and not os.path.samestat(found, os.stat(final)):  # a deleted file, by its number in /proc/self/fd
        raise OSError(errno.EINVAL, "Has no name under which it could be replaced")
    if follow and not os.access(final, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if _output(found) is not None:
        raise OSError(errno.EINVAL, "Is where this program's own output goes, which cannot be replaced")
    if kind is not None and found.st_size:
        with os.fdopen(opened(final, follow=follow), "rb") as file:
            head = file.read(HEAD)
        if not re.match(kind.start, head):
            what = "a model" if head.startswith(b"GGUF") else "something else"
            raise OSError(
                errno.EEXIST, f"Holds {what}; what is replaced is {kind.name}, an empty file, or one that is not there"
            )


def _is_stream(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode)


def _output(found: os.stat_result):
    """sys.stdout or sys.stderr, if that is the file; None if it is none of them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no file at all
            if os.path.samestat(os.fstat(stream.fileno()), found):
                return stream
    return None


def _stream(path, found: os.stat_result) -> int:
    """The descriptor of what is not replaced but written into."""
    if (own := _output(found)) is not None:  # after what was printed already, not over it
        own.flush()
        return os.dup(own.fileno())
    fd = os.open(path, _WRITE)
    os.set_blocking(fd, True)
    return fd


def _keep_name(folder: str) -> None:
    """Let the new name of a file outlive a crash of the system."""
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _permit(fd: int, old: os.stat_result | None, mode: int | None) -> None:
    """Give a new file the owner and the permissions of the one it replaces, or this mode."""
    if not hasattr(os, "fchmod"):
        return
    if old is not None:
        new, mode = os.fstat(fd), stat.S_IMODE(old.st_mode) & 0o777
        try:
            if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(fd, old.st_uid, old.st_gid)
        except PermissionError:
            mode &= ~0o070  # what was for that group is not for another one
    if mode is not None:
        os.fchmod(fd, mode)
