"""Where things are cached, with a home folder and without, and whose machine code is loaded."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest
import tiny_model
from conftest import ROOT

from ikpy_llm.engine.file import hub
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.compiler import folders, jit

posix = pytest.mark.skipif(not folders.HAS_OWNERS, reason="files have no owners here")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, a folder for temporary files, and no IKPY_CACHE; returns the home folder."""
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir(mode=0o755)
    for name in ("IKPY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for cached in (folders._default, folders._instead_of):
        cached.cache_clear()
    yield tmp_path / "home"
    for cached in (folders._default, folders._instead_of):
        cached.cache_clear()


def unknown_home(monkeypatch):
    """As for a user without an entry in the password file and without HOME: ~ stays as it is."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def test_the_usual_place(home, monkeypatch, caplog):
    assert folders.root() == Path(platformdirs.user_cache_dir("ikpy", appauthor=False))
    if sys.platform == "linux":
        assert folders.root() == home / ".cache" / "ikpy"
        for named, expected in ((home / "x", home / "x"), ("x", home / ".cache"), (" ", home / ".cache")):
            monkeypatch.setenv("XDG_CACHE_HOME", str(named))
            assert folders.root() == expected / "ikpy"
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert folders.kernels() == folders.root() / "kernels"
    monkeypatch.setenv("IKPY_CACHE", "~/elsewhere")
    assert folders.root() == home / "elsewhere"
    monkeypatch.setenv("IKPY_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(IkpyError, match="IKPY_CACHE=~nobody-of-this-name/x"):
        folders.root()
    assert not caplog.records


def test_without_a_home_folder(home, monkeypatch, caplog):
    unknown_home(monkeypatch)
    there = folders.root()
    assert there.parent == Path(tempfile.gettempdir()) and there == folders.root()
    assert stat.S_IMODE(there.stat().st_mode) == 0o700 or not folders.HAS_OWNERS
    assert [r.getMessage() for r in caplog.records] == [
        f"no home folder can be written: kernels and models are kept in {there}; IKPY_CACHE sets another"
    ]
    path = there / "kernels" / "a.b-12.o"
    jit.write_object(path, jit.symbol_of(path), b"code")
    assert jit.read_object(path) == ("ikpy.a.b.12", b"code")


def test_the_hub_without_a_home_folder(home, monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, "")
    hub._hub()
    assert not os.environ["HF_HOME"]
    unknown_home(monkeypatch)
    hub._hub()
    assert os.environ["HF_HOME"] == str(folders.root() / "huggingface")


@posix
@pytest.mark.parametrize("made", ["open to all", "a file", "a link"])
def test_a_private_folder_that_is_not(home, monkeypatch, made):
    unknown_home(monkeypatch)
    there = Path(tempfile.gettempdir()) / f"ikpy-{os.getuid()}"
    if made == "open to all":
        there.mkdir()
        there.chmod(0o777)
    elif made == "a file":
        there.write_text("")
    else:
        there.symlink_to(home)
    with pytest.raises(IkpyError, match="IKPY_CACHE") as caught:
        folders.root()
    assert str(there) in str(caught.value) and "\n" not in str(caught.value)


@posix
@pytest.mark.skipif(folders.HAS_OWNERS and os.getuid() == 0, reason="root may write everywhere")
def test_a_home_folder_that_cannot_be_written(home, caplog):
    home.chmod(0o555)
    assert folders.root().parent == Path(tempfile.gettempdir()) and "IKPY_CACHE" in caplog.text
    home.chmod(0o755)


@posix
@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_others_may_read_and_only_the_owner_write(tmp_path, monkeypatch, umask):
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path / "cache"))
    path = folders.kernels() / "a.b-12.o"
    before = os.umask(umask)
    try:
        jit.write_object(path, jit.symbol_of(path), b"code")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755 & ~umask
    assert jit.read_object(path) == ("ikpy.a.b.12", b"code") and folders.kernels() == path.parent


@posix
@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_a_folder_that_others_write_is_not_used(home, tmp_path, monkeypatch, caplog, mode):
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "kernels" / "a.b-12.o"
    jit.write_object(path, jit.symbol_of(path), b"code")
    path.parent.chmod(mode)
    there = folders.kernels()
    assert there == Path(tempfile.gettempdir()) / f"ikpy-{os.getuid()}" / "kernels" == folders.kernels()
    assert [r.getMessage() for r in caplog.records] == [
        f"{path.parent}: others can write there (chmod go-w helps), so its code is not loaded and kernels are kept in "
        f"{there}"
    ]
    path.parent.chmod(0o755)
    assert folders.kernels() == path.parent


@posix
def test_a_file_that_others_write_is_compiled_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("IKPY_CACHE", str(tmp_path / "cache"))
    path = folders.kernels() / "a.b-12.o"
    jit.write_object(path, jit.symbol_of(path), b"code")
    path.chmod(0o666)
    assert jit.read_object(path) is None and f"{path.name} can have been written by another user" in caplog.text


@posix
def test_files_of_other_users(home, tmp_path, monkeypatch, caplog):
    """Root's are used, those of anybody else are not, also where IKPY_CACHE names their folder."""
    folder = folders.root() / "kernels"
    folders.make(folder)
    path = folder / "a.b-12.o"
    jit.write_object(path, jit.symbol_of(path), b"code")
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)  # whoever we are now, the file is another's
    if me == 0:
        assert folders.kernels() == folder and jit.read_object(path)
        return
    assert folders.distrusted(folder) == f"it belongs to another user ({me})" and jit.read_object(path) is None
    monkeypatch.setenv("IKPY_CACHE", str(folders.root()))
    assert jit.read_object(path) is None


def owned_by(monkeypatch, path: Path, user: int) -> None:
    """Let a file or folder belong to somebody, as an open descriptor and as a path."""
    there, real = path.stat(), {"fstat": os.fstat, "stat": os.stat}

    def told(name):
        def status(*words, **how):
            found = real[name](*words, **how)
            same = os.path.samestat(found, there)
            return os.stat_result((*found[:4], user, *found[5:])) if same else found

        return status

    for name in real:
        monkeypatch.setattr(os, name, told(name))


@posix
@pytest.mark.parametrize("which", ["file", "folder"])
@pytest.mark.parametrize("named", [False, True])
def test_code_that_belongs_to_another_user(home, tmp_path, monkeypatch, caplog, which, named):
    if named:
        monkeypatch.setenv("IKPY_CACHE", str(tmp_path / "cache"))
    path, other = entry(), os.getuid() + 1
    owned_by(monkeypatch, path if which == "file" else path.parent, other)
    assert jit.read_object(path) is None
    why = f"it belongs to another user ({other})"
    assert [r.getMessage() for r in caplog.records] == [
        f"cache entry {path.name} can have been written by another user ({why}), compiling again"
    ]
    if which == "folder":
        caplog.clear()
        assert folders.kernels() == folders.kernels() == folders.private() / "kernels"
        assert len(caplog.records) == 1 and caplog.records[0].getMessage().startswith(f"{path.parent}: {why}, so")
    owned_by(monkeypatch, path if which == "file" else path.parent, 0)
    assert jit.read_object(path)


def entry() -> Path:
    """A cache entry that is there."""
    path = folders.kernels() / "a.b-12.o"
    jit.write_object(path, jit.symbol_of(path), b"code")
    assert jit.read_object(path) == ("ikpy.a.b.12", b"code")
    return path


@posix
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_files_that_others_write(home, caplog, mode):
    path = entry()
    path.chmod(mode)
    assert jit.read_object(path) is None and "others can write there" in caplog.text


@posix
def test_the_folder_is_looked_at_when_it_is_open(home, caplog):
    """Not only when it is chosen: what it was then does not count."""
    path = entry()
    path.parent.chmod(0o777)
    assert jit.read_object(path) is None and "others can write there" in caplog.text


@posix
def test_only_regular_files_are_opened(home, tmp_path, caplog):
    """A FIFO would be waited for."""
    path = entry()
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)
    assert jit.read_object(path) is None
    jit.write_object(path, jit.symbol_of(path), b"new")
    assert not path.is_symlink() and jit.read_object(path)[1] == b"new" != other.read_bytes()
    for make in (os.mkfifo, os.mkdir):
        path.unlink()
        make(path)
        assert jit.read_object(path) is None
        with pytest.raises(IkpyError, match=f"^{path}: Is a .*, not a regular file$"):
            jit.write_object(path, jit.symbol_of(path), b"new")
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(b"")
    os.truncate(path, folders.MOST_CODE + 1)
    assert jit.read_object(path) is None and not caplog.records


@posix
def test_a_linked_cache_is_used(home, tmp_path):
    (tmp_path / "big").mkdir(mode=0o755)
    (home / ".cache").mkdir()
    (home / ".cache" / "ikpy").symlink_to(tmp_path / "big")
    path = entry()
    assert (tmp_path / "big" / "kernels" / path.name).is_file()


@posix
def test_a_fifo_in_the_cache_of_the_command_line(tmp_path):
    """The start ends at once, with a line that names it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IKPY_CACHE": str(tmp_path / "cache")}
    code = "from ikpy_llm.kernels.compiler import jit, folders; print(jit.cache_path(jit.Kernel('run.runner.work')))"
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    model = tiny_model.write(tmp_path / "tiny.gguf")
    command = [sys.executable, "-m", "ikpy_llm", "run", "-m", str(model), "-p", "the end", "-n", "2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{path}: Is a FIFO, not a regular file" in done.stderr.splitlines()[-1]


UNSHARE = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
MAY_UNSHARE = (
    shutil.which("unshare") is not None
    and subprocess.run([*UNSHARE, sys.executable, "-c", ""], capture_output=True, check=False).returncode == 0
)


@pytest.mark.skipif(not MAY_UNSHARE, reason="this system makes no users")
@pytest.mark.parametrize("cache", [None, "warm"])
def test_command_line_of_a_user_nobody_knows(tmp_path, cache):
    """A container that runs as a number: no entry in the password file, no HOME."""
    model, temporary, warm = tiny_model.write(tmp_path / "tiny.gguf"), tmp_path / "temporary", tmp_path / "cache"
    temporary.mkdir()
    removed = ("HOME", "IKPY_CACHE", "XDG_CACHE_HOME")
    env = {k: v for k, v in os.environ.items() if k not in removed} | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
    }
    command = [sys.executable, "-m", "ikpy_llm", "run", "-m", str(model), "-p", "the end", "-n", "2", "--temp", "0"]
    if cache:  # filled by the user who made the container
        env["IKPY_CACHE"] = str(warm)
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=300)
        warm.joinpath("kernels").chmod(0o555)
    done = subprocess.run([*UNSHARE, *command], env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("the end"), done.stderr
    said = [line for line in done.stderr.splitlines() if "IKPY_CACHE" in line]
    assert len(said) == (cache is None) and "Traceback" not in done.stderr
    assert [p.name for p in temporary.iterdir()] == ([] if cache else ["ikpy-12345"])
    assert not (tmp_path / "~").exists()
