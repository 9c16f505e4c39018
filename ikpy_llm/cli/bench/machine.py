"""What a speed depends on besides the model: the machine and the versions, in every record of a benchmark."""

from __future__ import annotations

import functools
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from ikpy_llm.cli import console
from ikpy_llm.version import VERSION

BUILD = f"ikpy-{VERSION}"


@functools.cache
def cpu_name() -> str:
    """The CPU's name as Linux tells it, elsewhere what Python knows."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int:
    """Bytes of the machine; 0 where the system does not say (no /proc)."""
    import psutil

    try:
        return psutil.virtual_memory().total
    except OSError:
        return 0


@functools.cache
def _fixed() -> dict[str, object]:
    from ikpy_llm.kernels.compiler import jit
    from ikpy_llm.kernels.run import cores

    facts = {
        "cpu_info": cpu_name(),
        "target": jit.target.current().title,
        "cores_allowed": cores.n_logical(),
        "memory_gib": round(_memory() / 2**30, 1),
        "python": platform.python_version(),
    }
    for name in ("numba", "llvmlite", "numpy"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = ""
    return facts


def facts() -> dict[str, object]:
    """CPU name, target of the kernels, cores this process may use, memory, versions, and the load average now."""
    return _fixed() | {"load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0}


def line(f: dict[str, object] | None = None) -> str:
    """The same in one line; `f`: facts of an earlier run, as a record has them."""
    f = f or facts()
    versions = ", ".join(f"{name} {f[name]}" for name in ("numba", "llvmlite", "numpy"))
    machine = f"{f['cpu_info']}, {f['cores_allowed']} cores, {f['memory_gib']} GiB, {f['target']}"
    return (
        f"{machine}; {f.get('build_commit', BUILD)}, Python {f['python']}, {versions}; load average {f['load_average']}"
    )


def note_load() -> None:
    """Tell the user if others keep the cores busy: speeds are then not this machine's."""
    f = facts()
    if f["load_average"] > 0.5 * f["cores_allowed"]:
        console.note(
            f"load average {f['load_average']} on {f['cores_allowed']} cores: others may slow this measurement"
        )
