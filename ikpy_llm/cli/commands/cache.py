"""show or clear what ikpy keeps in the user's cache folder"""

import dataclasses
from pathlib import Path

from ikpy_llm.cli.options import Common, flag


@dataclasses.dataclass
class Options(Common):
    """Flags of `ikpy cache`."""

    action: str = flag("show", choices=("show", "clear"), metavar="show|clear", help="what to do", env="")
    everything: bool = flag(False, "--all", help="clear downloaded models too, not only compiled kernels", env="")


def main(options: Options) -> None:
    """Print folder, number of files and size of each part of the cache; `clear` removes the compiled kernels first."""
    from ikpy_llm.kernels import folders

    root = folders.root()
    parts = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if options.action == "clear":
        for part in parts:
            if options.everything or part == root / "kernels":
                _remove(part)
                print(f"removed {part}")
        return
    print(f"{root}" + ("" if parts else "  (empty)"))
    for part in parts:
        files = [f for f in part.rglob("*") if f.is_file()]
        size = sum(f.stat().st_size for f in files)
        print(f"  {part.name:12} {len(files):6} files {size / 2**20:10.1f} MiB")


def _remove(part: Path) -> None:
    import shutil

    shutil.rmtree(part)
