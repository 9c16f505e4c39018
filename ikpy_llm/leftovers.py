"""What processes left behind that were killed while they wrote: a later one removes it."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time

AGE = 86_400  # seconds; what is younger may be another process's work
# Files that are not complete (files.py), and folders of downloads (engine/file/demo_model.py).
NAME = re.compile(r"\.(writing-[0-9a-f]{16}|fetching-\w{8})")
FETCHING = ".fetching-"


def sweep(folder) -> None:
    """Remove from a folder what is named so, belongs to this user and is a day old. It is no error if that fails."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name):
                _remove(entry.path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if time.time() - found.st_mtime < AGE or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            return
        if stat.S_ISDIR(found.st_mode):
            import shutil  # 5 ms that a start need not wait for

            shutil.rmtree(path)
        elif stat.S_ISREG(found.st_mode):
            os.unlink(path)
