"""show or clear what ikpy keeps in the user's cache folder"""

import contextlib
import dataclasses
import os
import re
import sys
from pathlib import Path

from ikpy_llm.cli.options import Common, flag

KERNELS, MODELS, HUB = "kernels", "models", "huggingface"  # the folders that ikpy makes
KERNEL = re.compile(r"[\w.]+-[0-9a-f]{40}\.o")
UNFINISHED = re.compile(r"\.writing-\w+")  # of a process that was killed
SHOWN = 10  # names of files that are not ikpy's


@dataclasses.dataclass
class Options(Common):
    """Flags of `ikpy cache`."""

    action: str = flag("show", choices=("show", "clear"), metavar="show|clear", help="what to do", env="")
    everything: bool = flag(False, "--all", help="clear downloaded models too, not only compiled kernels", env="")
    yes: bool = flag(False, "--yes", help="do not ask before models are cleared", env="")


def main(options: Options) -> int:
    """Print folder, number of files and size of each part of the cache; `clear` removes the compiled kernels first.

    Only what ikpy made is removed: files by their names, in the folders that it uses, and no link is followed.
    """
    from ikpy_llm.kernels.compiler import folders

    root = folders.root()
    if options.action == "show":
        _show(root)
        return 0
    parts = {part: found for part in _parts(root) if (found := _made(part, options.everything))}
    for part, found in parts.items():
        print(f"to be removed: {_line(part, found)}")
    _name_left(root, parts, options.everything)
    if parts and options.everything and not options.yes and not _agreed():
        print("nothing was removed")
        return 1
    for part, found in parts.items():
        _remove(part, found)
        print(f"removed {part}")
    return 0


def _parts(root: Path) -> list[Path]:
    """The folders in the cache that ikpy may have made; a link is none."""
    found = (root / name for name in (KERNELS, MODELS, HUB))
    return [part for part in found if part.is_dir() and not part.is_symlink()]


def _made(part: Path, everything: bool) -> list[Path]:
    """The files that ikpy made in a part of the cache, and the folders of downloads that broke off."""
    from ikpy_llm import leftovers
    from ikpy_llm.engine.file.demo_model import MEMBER
    from ikpy_llm.kernels.compiler import folders

    if part.name == KERNELS:
        return [f for f in _files(part) if KERNEL.fullmatch(f.name) or UNFINISHED.fullmatch(f.name)]
    # In a folder that the user named there may be others of these names.
    if not everything or (os.environ.get("IKPY_CACHE") and not folders.is_marked(part)):
        return []
    if part.name == HUB:
        return _files(part, deep=True)
    model = Path(MEMBER).name
    unfinished = re.compile(rf"{UNFINISHED.pattern}|\.{re.escape(model)}\.\d+\.part")  # the second of earlier versions
    files = [f for f in _files(part) if f.name in (model, folders.MARKER) or unfinished.fullmatch(f.name)]
    return files + [p for p in _entries(part) if leftovers.NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]


def _files(folder: Path, deep: bool = False) -> list[Path]:
    """Regular files in a folder; deep: and in those below it, with their links."""
    out = []
    for here, below, names in os.walk(folder):
        paths = (Path(here, name) for name in names)
        out += [path for path in paths if path.is_file() and (deep or not path.is_symlink())]
        if not deep:
            below.clear()
    return sorted(out)


def _line(part: Path, found: list[Path]) -> str:
    size = sum(f.lstat().st_size for f in found)
    return f"{part}: {len(found)} file{'s' * (len(found) != 1)}, {size / 2**20:.1f} MiB"


def _name_left(root: Path, parts: dict[Path, list[Path]], everything: bool) -> None:
    """Say what stays though the cache is cleared, because ikpy did not make it."""
    left = [p for p in _entries(root) if p not in parts and (everything or p.name not in (MODELS, HUB))]
    left += [p for part, found in parts.items() if part.name != HUB for p in _entries(part) if p not in set(found)]
    if left:
        more = f" and {len(left) - SHOWN} more" * (len(left) > SHOWN)
        print(f"left, not made by ikpy: {', '.join(map(str, left[:SHOWN]))}{more}")


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _agreed() -> bool:
    """The user's answer; scripts, which have no terminal, have asked for it already."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    print("remove this? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _remove(part: Path, found: list[Path]) -> None:
    """Remove the files, and the folder where nothing else is in it."""
    import shutil

    if part.name == HUB:
        shutil.rmtree(part)  # which follows no links
        return
    for file in found:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        part.rmdir()


def _show(root: Path) -> None:
    parts, others = _parts(root), [p for p in _entries(root) if p.name not in (KERNELS, MODELS, HUB)]
    print(f"{root}" + ("" if parts or others else "  (empty)"))
    for part in parts:
        files = _files(part, deep=True)
        size = sum(f.lstat().st_size for f in files)
        print(f"  {part.name:12} {len(files):6} files {size / 2**20:10.1f} MiB")
    if others:
        print(f"  {'others':12} {len(others):6} files and folders that are not ikpy's")
