"""What killed processes left behind is removed by later ones, and nothing else is."""

import os
import time

import pytest

from ikpy_llm import files, leftovers

OLD = time.time() - leftovers.AGE - 60


def aged(path):
    os.utime(path, (OLD, OLD), follow_symlinks=False)
    return path


def made(path, data=b"x"):
    path.write_bytes(data)
    return path


def test_only_old_leftovers_go(tmp_path):
    name = files.TEMPORARY + "0123456789abcdef"
    gone = [aged(made(tmp_path / name))]
    folder = tmp_path / (leftovers.FETCHING + "abc_d123")
    folder.mkdir()
    made(folder / "half.whl")
    gone.append(aged(folder))
    kept = [made(tmp_path / (files.TEMPORARY + "f" * 16))]  # another process may be writing it
    others = ("model.gguf", ".writing-notes", "writing-0123456789abcdef", name + ".bak", ".writing-0123456789ABCDEF")
    kept += [aged(made(tmp_path / other)) for other in others]
    leftovers.sweep(tmp_path)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)
    leftovers.sweep(tmp_path / "missing")
    leftovers.sweep(kept[0])


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links")
def test_links_are_not_followed(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    made(target / "precious")
    place = tmp_path / "place"
    place.mkdir()
    for name in (files.TEMPORARY + "0" * 16, leftovers.FETCHING + "a" * 8):
        (place / name).symlink_to(target)
        aged(place / name)
    leftovers.sweep(place)
    assert (target / "precious").exists() and len(list(place.iterdir())) == 2


def test_names_are_those_that_are_written(tmp_path):
    with files.written(tmp_path / "x") as file:
        file.write(b"x")
        (name,) = os.listdir(tmp_path)
        assert leftovers.NAME.fullmatch(name)
