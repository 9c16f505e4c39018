"""Files are written whole or not at all, only regular ones are replaced; every writer of the program goes that way."""

import ast
import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from ikpy_llm import files
from ikpy_llm.errors import IkpyError

posix = pytest.mark.skipif(os.name != "posix", reason="FIFOs, devices and permissions of POSIX")
root = pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root makes devices")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def special(folder: Path, kind: str) -> Path:
    """A path with something that is not a regular file."""
    path = folder / "special"
    if kind == "a directory":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))
    else:
        try:
            os.mknod(path, 0o666 | (stat.S_IFCHR if kind == "a character device" else stat.S_IFBLK), os.makedev(1, 3))
        except PermissionError:
            pytest.skip("no devices can be made here")
    return path


KINDS = ["a directory", "a FIFO", "a socket"]
KINDS += [pytest.param(kind, marks=root) for kind in ("a character device", "a block device")]


@posix
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("link", [False, True])
def test_only_regular_files_are_replaced_and_read(tmp_path, kind, link):
    path = there = special(tmp_path, kind)
    if link:
        path = tmp_path / "link"
        path.symlink_to(there)
    before, old = names(tmp_path), there.stat()
    message = f"^--flag {path}: Is {kind}, not a regular file$"
    for refused in (lambda: files.write(path, b"x", flag="--flag"), lambda: files.check(path, flag="--flag")):
        with pytest.raises(IkpyError, match=message):
            refused()
    with pytest.raises(OSError, match=f"Is {kind}, not a regular file"):
        files.opened(path)
    assert names(tmp_path) == before and os.path.samestat(old, there.stat())


def test_new_and_replaced_files(tmp_path):
    path = tmp_path / "file"
    files.check(path)
    with files.written(path) as file:
        file.write(b"new")
        assert not path.exists() and len(names(tmp_path)) == 1
    assert path.read_bytes() == b"new" and names(tmp_path) == ["file"]
    for durable in (False, True):
        files.write(path, b"x" * 100_000, durable=durable)
        assert path.read_bytes() == b"x" * 100_000 and names(tmp_path) == ["file"]
    with os.fdopen(files.opened(path), "rb") as file:
        assert file.read(2) == b"xx"


def test_a_path_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write("file", b"x")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, TimeoutError, IkpyError])
@pytest.mark.parametrize("old", [b"old", None])
def test_what_stops_a_writer_leaves_what_was_there(tmp_path, error, old):
    """An error of the block comes out as it is: it may be the network's."""
    path = tmp_path / "file"
    if old:
        path.write_bytes(old)
    with pytest.raises(error), files.written(path) as file:
        file.write(b"new" * 10_000)
        raise error("x")
    assert (path.read_bytes() if old else None) == old and names(tmp_path) == ["file"] * bool(old)


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write(tmp_path / "new", b"")
        files.write(tmp_path / "private", b"", mode=0o600)
        files.write(tmp_path / "exact", b"", mode=0o644, exact=True)
        for mode in (0o640, 0o600, 0o664):
            (tmp_path / "old").write_bytes(b"")
            (tmp_path / "old").chmod(mode)
            files.write(tmp_path / "old", b"x", mode=0o600)
            assert mode_of(tmp_path / "old") == mode
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "new") == 0o666 & ~umask
    assert mode_of(tmp_path / "private") == 0o600 and mode_of(tmp_path / "exact") == 0o644


@root
def test_the_owner_stays(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 12345, 12346)
    path.chmod(0o640)
    files.write(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (12345, 12346, 0o640)


@posix
def test_what_was_for_a_group_is_not_for_another_one(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "x")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o664)
    monkeypatch.setattr(os, "fchown", refused)
    real = os.fstat
    monkeypatch.setattr(files.os, "fstat", lambda fd: os.stat_result((*real(fd)[:5], real(fd)[5] + 1, *real(fd)[6:])))
    files.write(path, b"new")
    assert mode_of(path) == 0o604


@posix
def test_links(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    link.symlink_to(Path("there") / "target")
    for content in (b"new", b"again"):  # at first there is no target
        files.write(link, content)
        assert link.is_symlink() and target.read_bytes() == content and names(target.parent) == ["target"]
    files.write(link, b"own", follow=False)
    assert not link.is_symlink() and link.read_bytes() == b"own" and target.read_bytes() == b"again"
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(IkpyError, match="Too many levels of symbolic links"):
        files.write(link, b"")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
def test_errors_of_the_system_are_one_line(tmp_path, monkeypatch, number, where):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, where, refused)
    with pytest.raises(IkpyError) as error:
        files.write(path, b"x" * 100_000, flag="--flag", durable=True)
    monkeypatch.undo()
    assert str(error.value) == f"--flag {path}: {os.strerror(number)}"
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


@posix
def test_a_file_that_finds_no_room(tmp_path):
    """Here the limit of the size of a file; the error comes while the block writes, or when it ends."""
    import resource

    path, (soft, hard) = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b"old")
    for n in (4097, 1 << 20):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(IkpyError) as error, files.written(path) as file:
                file.write(bytes(n))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(error.value) == f"{path}: File too large"
        assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]
    if os.path.exists("/dev/full"):
        with pytest.raises(IkpyError, match=r"^/dev/full: No space left on device$"):
            files.write("/dev/full", b"x", streams=True)


@posix
@pytest.mark.skipif(os.name == "posix" and os.getuid() == 0, reason="root may write everywhere")
def test_what_may_not_be_written(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    for refused in (files.check, lambda path: files.write(path, b"")):
        with pytest.raises(IkpyError, match=f"^{path}: Permission denied$"):
            refused(path)
    path.chmod(0o644)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(IkpyError, match=f"^{path}: Permission denied$"):
            files.write(path, b"")
        files.write(path, b"shorter", streams=True)
    finally:
        tmp_path.chmod(0o755)
    assert path.read_bytes() == b"shorter"


def test_a_folder_that_is_not_there(tmp_path):
    for path in (tmp_path / "none" / "file", tmp_path / "file" / "file"):
        (tmp_path / "file").write_bytes(b"")
        for refused in (files.check, lambda path: files.write(path, b"")):
            with pytest.raises(IkpyError, match=f"^{path}: (No such file or directory|Not a directory)$"):
                refused(path)
    files.check(tmp_path / "none", to_read=True)


# --- what is written into ---


@posix
def test_streams(tmp_path):
    files.write("/dev/null", b"x", streams=True)
    files.check("/dev/null", streams=True)
    path = special(tmp_path, "a FIFO")
    with pytest.raises(IkpyError, match="No such device or address"):  # nobody reads: it does not wait
        files.write(path, b"x", streams=True)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    while reader.is_alive():
        try:
            files.write(path, b"x" * 1_000_000, streams=True)  # more than a FIFO holds
            break
        except IkpyError:
            pass  # the reader has not opened it yet
    reader.join()
    assert read == [b"x" * 1_000_000] and names(tmp_path) == ["special"]
    ends = os.pipe()
    files.write(f"/dev/fd/{ends[1]}", b"x", streams=True)
    assert os.read(ends[0], 10) == b"x"
    for end in ends:
        os.close(end)


OWN = """
import sys
from ikpy_llm import files
print("before")
files.write(sys.argv[1], b"file\\n", streams=True)
print("after")
"""


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no such names here")
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_own_output_is_written_into(tmp_path, to):
    """Between what was printed before and after, also where it is a regular file, which has another name too."""
    command, env, out = [sys.executable, "-c", OWN], {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path / "out"
    if to == "pipe":
        done = subprocess.run([*command, "/dev/stdout"], env=env, capture_output=True, timeout=60, check=True)
        assert done.stdout == b"before\nfile\nafter\n"
        return
    for name in ("/dev/stdout", out):
        with out.open("wb") as file:
            subprocess.run([*command, name], env=env, stdout=file, timeout=60, check=True)
        assert out.read_bytes() == b"before\nfile\nafter\n" and names(tmp_path) == ["out"]


# --- every writer goes this way ---

WRITES = {
    *"write_text write_bytes touch rename replace renames link symlink symlink_to hardlink_to truncate".split(),
    *"mkfifo mknod tofile save savez savez_compressed savetxt savefig mkstemp mktemp NamedTemporaryFile".split(),
    *"FileHandler RotatingFileHandler copy copy2 copyfile copytree move ZipFile open fdopen FileIO".split(),
    *"urlretrieve write_history_file sendfile".split(),
}
MAY_WRITE = {"files.py"}


def mode_in(call: ast.Call, at: int) -> str:
    """The mode a call of open gives; "?" where it is not written out."""
    given = [k.value for k in call.keywords if k.arg in ("mode", "flags")] + call.args[at : at + 1]
    if not given:
        return "r"
    return given[0].value if isinstance(given[0], ast.Constant) and isinstance(given[0].value, str) else "?"


def writes(call: ast.Call) -> str | None:
    """What a call writes with, None if it writes no file."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    text, owner = ast.unparse(call), ast.unparse(call.func).rpartition(".")[0]
    if name not in WRITES:
        return None
    if name in ("replace", "copy") and (len(call.args) != 1 or call.keywords) and owner not in ("os", "shutil"):
        return None  # of texts and of dataclasses
    if name == "copy" and (owner in ("", "copy", "np") or not call.args):
        return None
    if name in ("open", "fdopen"):
        if "os.devnull" in text or (owner == "os" and name == "open" and "O_RDONLY" in text):
            return None
        if name == "fdopen" and ast.unparse(call.args[0]).startswith("os.dup("):  # stdout
            return None
        method = isinstance(call.func, ast.Attribute) and owner not in ("os", "io", "codecs", "gzip")
        mode = mode_in(call, 0 if method else 1)
        if owner == "os" and name == "open":
            return text
        unknown = mode == "?" and not method  # what a method named open takes first may be no mode
        return text if unknown or set(mode) & set("wax+") else None
    if name == "ZipFile":
        return text if set(mode_in(call, 1)) & set("wax") else None
    if name == "savefig":
        return None if ast.unparse(call.args[0]) == "picture" else text  # a buffer
    if name == "save":
        return text if owner in ("np", "numpy") else None
    return text


def writers(source: str) -> list[str]:
    return [text for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and (text := writes(node))]


@pytest.mark.parametrize("folder", ["ikpy_llm", "benchmarks"])
def test_every_writer_goes_through_this_module(folder):
    found = {
        path.relative_to(ROOT).as_posix(): texts
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.relative_to(ROOT / folder).as_posix() not in MAY_WRITE
        and (texts := writers(path.read_text(encoding="utf-8")))
    }
    assert not found


def test_writers_are_recognized():
    assert writers((ROOT / "ikpy_llm" / "files.py").read_text(encoding="utf-8"))
    for text in (
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, how)",
        "path.open('wb')",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "os.open(path, flags)",
        "os.replace(a, b)",
        "path.replace(other)",
        "path.rename(other)",
        "path.write_text('x')",
        "array.tofile(path)",
        "np.save(path, array)",
        "np.savez(path, a=array)",
        "figure.savefig(path)",
        "tempfile.mkstemp()",
        "tempfile.NamedTemporaryFile()",
        "logging.FileHandler(path)",
        "zipfile.ZipFile(path, 'w')",
        "shutil.copy(a, b)",
        "shutil.move(a, b)",
        "os.fdopen(fd, 'wb')",
        "gzip.open(path, 'wb')",
    ):
        assert writers(text) == [ast.unparse(ast.parse(text))], text
    for text in (
        "open(path)",
        "open(path, 'rb')",
        "path.open(encoding='utf-8')",
        "os.open(path, os.O_RDONLY)",
        "text.replace('a', 'b')",
        "dataclasses.replace(op, a=1)",
        "x.copy()",
        "copy.copy(x)",
        "zipfile.ZipFile(path)",
        "model.save(path)",
        "tempfile.TemporaryFile()",
        "self._open(link)",
    ):
        assert not writers(text), text
