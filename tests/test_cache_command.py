"""`ikpy cache`: what is shown, and that clearing removes what ikpy made and nothing else."""

import os
from pathlib import Path

import pytest
from terminal import Terminal

from ikpy_llm.cli.commands import cache
from ikpy_llm.engine.file.demo_model import MEMBER
from ikpy_llm.kernels.compiler import folders

KERNEL = f"derive.gemv-{'0123456789' * 4}.o"
MODEL = Path(MEMBER).name


def filled(root: Path, marked: bool = True) -> Path:
    """A cache as ikpy makes it, and beside that files that it did not make, with a link in each folder."""
    outside = root.parent / "outside"
    outside.mkdir()
    for name in (KERNEL, MODEL, "more"):
        (outside / name).write_bytes(b"precious")
    for part, made in (("kernels", [KERNEL, ".writing-0f"]), ("models", [MODEL, f".{MODEL}.12.part"])):
        (root / part).mkdir(parents=True)
        for name in [*made, "foreign.o", f"x{KERNEL}x"]:
            (root / part / name).write_bytes(bytes(1 << 20))
        (root / part / KERNEL.replace("0", "1")).symlink_to(outside / KERNEL)
        (root / part / "link").symlink_to(outside)
    (root / "huggingface" / "hub").mkdir(parents=True)
    (root / "huggingface" / "hub" / "blob").write_bytes(b"x")
    (root / "huggingface" / "hub" / "link").symlink_to(outside)
    for part in ("models", "huggingface"):
        if marked:
            (root / part / folders.MARKER).write_bytes(folders.MARK)
    (root / "notes").mkdir()
    (root / "notes" / KERNEL).write_bytes(b"foreign")
    (root / "file").write_bytes(b"foreign")
    return outside


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


def test_shown(ikpy, tmp_path):
    root, env = tmp_path / "cache", {"IKPY_CACHE": str(tmp_path / "cache")}
    assert ikpy("cache", env=env).stdout == f"{root}  (empty)\n"
    filled(root)
    lines = ikpy("cache", env=env).stdout.splitlines()
    assert lines[0] == str(root) and [line.split()[:2] for line in lines[1:]] == [
        ["kernels", "5"],
        ["models", "6"],
        ["huggingface", "2"],
        ["others", "2"],
    ]
    assert lines[1].endswith(" 4.0 MiB")


def test_kernels_are_cleared(ikpy, tmp_path):
    root = tmp_path / "cache"
    outside = filled(root)
    before = tree(root)
    done = ikpy("cache", "clear", env={"IKPY_CACHE": str(root)})
    assert done.returncode == 0, done.stderr
    assert before - tree(root) == {f"kernels/{KERNEL}", "kernels/.writing-0f"}
    lines = done.stdout.splitlines()
    assert lines[0] == f"to be removed: {root / 'kernels'}: 2 files, 2.0 MiB"
    assert lines[1].startswith("left, not made by ikpy: ") and f"{root / 'kernels' / 'foreign.o'}" in lines[1]
    assert lines[2:] == [f"removed {root / 'kernels'}"] and len(tree(outside)) == 3


@pytest.mark.parametrize("words", [(), ("--yes",)])
def test_all_is_cleared(ikpy, tmp_path, words):
    """Scripts, without a terminal, are not asked."""
    root = tmp_path / "cache"
    outside = filled(root)
    before = tree(root)
    done = ikpy("cache", "clear", "--all", *words, env={"IKPY_CACHE": str(root)})
    assert done.returncode == 0, done.stderr
    gone = {f"kernels/{KERNEL}", "kernels/.writing-0f", f"models/{MODEL}", f"models/.{MODEL}.12.part"}
    gone |= {f"models/{folders.MARKER}", *(name for name in before if name.startswith("huggingface"))}
    assert before - tree(root) == gone and len(tree(outside)) == 3
    for name in ("notes", "file", "models/foreign.o", "kernels/link"):
        assert str(root / name) in done.stdout
    assert (outside / "more").read_bytes() == b"precious"


def test_nothing_is_left_of_what_ikpy_made(ikpy, tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("IKPY_CACHE", str(root))
    folders.make(root / "kernels")
    (root / "kernels" / KERNEL).write_bytes(b"")
    folders.make_marked(root / "models")
    (root / "models" / MODEL).write_bytes(b"")
    done = ikpy("cache", "clear", "--all")
    assert done.returncode == 0 and tree(root) == set() and "not made by" not in done.stdout


def test_models_in_a_folder_of_the_users_own(ikpy, tmp_path):
    """IKPY_CACHE may name a folder that has models and a cache of the hub already."""
    root = tmp_path / "home"
    filled(root, marked=False)
    before = tree(root)
    done = ikpy("cache", "clear", "--all", env={"IKPY_CACHE": str(root)})
    assert before - tree(root) == {f"kernels/{KERNEL}", "kernels/.writing-0f"}
    assert str(root / "models") in done.stdout and str(root / "huggingface") in done.stdout


def test_links_in_place_of_the_folders(ikpy, tmp_path):
    root, outside = tmp_path / "cache", tmp_path / "outside"
    root.mkdir()
    for part in ("kernels", "models", "huggingface"):
        (outside / part).mkdir(parents=True)
        (outside / part / folders.MARKER).write_bytes(folders.MARK)
        (outside / part / KERNEL).write_bytes(b"")
        (root / part).symlink_to(outside / part)
    before = tree(outside)
    done = ikpy("cache", "clear", "--all", env={"IKPY_CACHE": str(root)})
    assert done.returncode == 0 and tree(outside) == before
    assert "removed" not in done.stdout and str(root / "models") in done.stdout


@pytest.mark.parametrize("root", [Path.home(), Path("/")], ids=["home", "/"])
def test_home_and_root_as_the_cache(root, monkeypatch, capsys):
    """Nothing that is there is ikpy's. That is looked at; a test must not try to clear them."""
    monkeypatch.setenv("IKPY_CACHE", str(root))
    cache.main(cache.Options(action="show"))
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(str(root)) and len(shown) < 6
    assert not [part for part in cache._parts(root) if part.name != "kernels" and cache._made(part, True)]


@pytest.mark.parametrize(("answer", "goes"), [("y", True), ("yes", True), ("n", False), ("", False)])
def test_a_terminal_is_asked(tmp_path, answer, goes):
    root = tmp_path / "cache"
    filled(root)
    before = tree(root)
    with Terminal("cache", "clear", "--all", env={"IKPY_CACHE": str(root)}) as t:
        t.until(r"\[y/N\] ")
        assert tree(root) == before and "to be removed: " in t.text
        t.press(answer + "\n")
        code = t.end()
    assert (code, len(tree(root)) < len(before)) == ((0, True) if goes else (1, False))


def test_a_folder_that_is_not_there(ikpy, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "none", tmp_path / "file"):
        done = ikpy("cache", "clear", "--all", env={"IKPY_CACHE": str(root)})
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert os.listdir(tmp_path) == ["file"]


def test_a_download_that_broke_off(ikpy, tmp_path):
    folder = tmp_path / "models" / ".fetching-0a_bcdef"
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "half.whl").write_bytes(b"x")
    (tmp_path / "models" / folders.MARKER).write_bytes(folders.MARK)
    assert ikpy("cache", "clear", env={"IKPY_CACHE": str(tmp_path)}).returncode == 0 and folder.exists()
    done = ikpy("cache", "clear", "--all", "--yes", env={"IKPY_CACHE": str(tmp_path)})
    assert done.returncode == 0 and not folder.exists(), done.stderr
