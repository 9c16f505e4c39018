"""What every benchmark writes: a JSON file with its figures, the command, versions and the machine."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "llvmlite", "ik-llama-cpp-python")


def machine() -> dict[str, object]:
    """CPU, cores this process may use, memory in GiB and system, as far as the system tells."""
    import psutil

    from ikpy_llm.cli.bench.machine import cpu_name

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Python, ikpy and the packages that shape the speed; `commit` where the tree is a git checkout."""
    from ikpy_llm.version import VERSION

    found = {"python": platform.python_version(), "ikpy": VERSION}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found


def write(name: str, figures: dict, command: list[str] | None = None) -> Path:
    """Write results/NAME.json; `command` is what to type to get the figures again. Returns the path."""
    from ikpy_llm import files

    script, *words = sys.argv
    words = [Path(word).name if Path(word).is_absolute() else word for word in words]  # no folder of one machine
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    head = {
        "command": " ".join(command or ["python", f"benchmarks/{Path(script).name}", *words]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }
    files.write(path, (json.dumps(head | figures, indent=1) + "\n").encode())
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}", file=sys.stderr)
    return path
