"""From a kernel's name to the address of its machine code: object cache first, compiler processes for what is
missing. Imports no Numba.

A kernel is named by where it stands: Kernel("derive.gemv", type="Q4_0", n=1) is the function `gemv` in
ikpy_llm/kernels/derive/gemv.py called with type="Q4_0", n=1; that factory returns the function to compile.
Kernel("rows.rowwise.add") is `add` in rowwise.py.

One ABI: `void kernel(int64 args, int64 ith, int64 nth)`. args is the address of 8-byte words, one per parameter before
ith and nth: integers and addresses as they are, parameters annotated `f32` as float32 bits in the low half. Every
worker calls the kernel with its ith of nth.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import logging
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from ikpy_llm import files, forks, leftovers
from ikpy_llm.errors import IkpyError

from ..run import cores
from ..simd import target
from . import folders

log = logging.getLogger("ikpy.jit")
_MAGIC = b"IKPYOBJ1"
_PACKAGE = Path(__file__).parents[1]


class JitError(IkpyError):
    """A kernel could not be compiled; the message names it."""


class Kernel:
    """Name and parameters of a kernel: hashable, printable, sent to compiler processes as text."""

    __slots__ = ("_text", "params", "path")

    def __init__(self, path: str, **params: str | int | bool):
        self.path, self.params = path, tuple(sorted(params.items()))
        self._text = json.dumps([path, dict(self.params)], sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Kernel:
        path, params = json.loads(text)
        return cls(path, **params)

    def __str__(self) -> str:
        return f"{self.path}({', '.join(f'{k}={v}' for k, v in self.params)})"

    __repr__ = __str__

    def text(self) -> str:
        return self._text

    def __eq__(self, other) -> bool:
        return isinstance(other, Kernel) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


cache_root, cache_dir = folders.root, folders.kernels  # of everything ikpy caches; of the object cache


@functools.cache
def _environment() -> bytes:
    """Hash of everything object code depends on besides the kernel's name: sources of this package, compiler
    versions, target."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0")
        digest.update(file.read_bytes())
    digest.update(_version("numba") + _version("llvmlite"))
    digest.update(f"{sys.version_info[:2]} {target.current().key}".encode())
    return digest.digest()


def _version(package: str) -> bytes:
    """What an installed package says about its version in its own file; importlib.metadata takes 15 ms to ask."""
    spec = find_spec(package)
    return (Path(spec.origin).parent / "_version.py").read_bytes() if spec else b""


def cache_path(spec: Kernel) -> Path:
    """Where the object code of `spec` is or will be."""
    key = hashlib.sha256(_environment() + spec.text().encode()).hexdigest()[:40]
    return cache_dir() / f"{spec.path}-{key}.o"


def symbol_of(path: Path) -> str:
    """Name of the function in the cache entry at path."""
    return "ikpy." + path.stem.replace("-", ".")


def read_object(path: Path) -> tuple[str, bytes] | None:
    """(symbol, object code) of a cache entry; None if it is missing, no regular file, damaged, or others can have
    written it."""
    try:
        data = folders.read_code(path)
    except folders.Foreign as error:
        log.warning(
            "cache entry %s can have been written by another user (%s), compiling again", path.name, error.strerror
        )
        return None
    except OSError:
        return None
    head = len(_MAGIC) + 32
    if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(data[head:]).digest() != data[len(_MAGIC) : head]:
        log.warning("cache entry %s is damaged, compiling again", path.name)
        return None
    symbol, _, code = data[head:].partition(b"\0")
    if symbol != symbol_of(path).encode():
        log.warning("cache entry %s holds another kernel, compiling again", path.name)
        return None
    return symbol.decode(), code


def write_object(path: Path, symbol: str, code: bytes) -> None:
    """Store object code; readers and writers of other processes never see half a file."""
    folders.make(path.parent)
    payload = symbol.encode() + b"\0" + code
    entry = _MAGIC + hashlib.sha256(payload).digest() + payload
    files.write(path, entry, follow=False, mode=folders.FILE_MODE, exact=True)


class _Linker:
    """Loads object code into this process with llvmlite alone."""

    def __init__(self):
        import llvmlite.binding as llvm

        self.llvm, self.loaded, self.keep = llvm, {}, []
        forks.lock(self, "lock", threading.Lock)
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=3, jit=True)
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def add(self, symbol: str, code: bytes) -> None:
        obj = self.llvm.ObjectFileRef.from_data(code)
        self.engine.add_object_file(obj)
        self.keep.append((obj, code))


@functools.cache
def _linker() -> _Linker:
    return _Linker()


def load(specs: Iterable[Kernel], progress: Callable[[int, int, str], None] | None = None) -> dict[Kernel, int]:
    """Addresses of kernels, compiling in parallel processes what the cache lacks. progress(done, total, name) is
    called while compiling."""
    specs = list(dict.fromkeys(specs))
    if not target.current().here:
        name = target.current().name
        why = f"target {name} cannot run on this CPU, which lacks {target.lacks(name)}"
        raise JitError(f"{why}; accepted are {', '.join(target.runnable())}")
    linker = _linker()
    with linker.lock:
        new = [s for s in specs if s not in linker.loaded]
        found = {s: read_object(cache_path(s)) for s in new}
        missing = [s for s in new if found[s] is None]
        if missing:
            _check_writable()
            compile_missing(missing, progress)
            for s in missing:
                found[s] = read_object(cache_path(s))
                if found[s] is None:
                    raise JitError(f"{s}: not in {cache_dir()} after compiling; did the sources change meanwhile?")
        for s in new:
            linker.add(*found[s])
        linker.engine.finalize_object()
        for s in new:
            linker.loaded[s] = linker.engine.get_function_address(found[s][0])
        return {s: linker.loaded[s] for s in specs}


def _check_writable() -> None:
    """JitError if compiled kernels cannot be stored."""
    import tempfile

    try:
        folders.make(cache_dir())
        leftovers.sweep(cache_dir())
        tempfile.TemporaryFile(dir=cache_dir()).close()
    except OSError as error:
        text = f"cannot write compiled kernels to {cache_dir()}: {error.strerror}; set IKPY_CACHE to a writable folder"
        raise JitError(text) from None


# What a compiler process runs. Numba cannot be imported where descriptors or memory are scarce: its answer then.
_CHILD = """\
import json
try:
    from ikpy_llm.kernels.compiler.compile import main
except Exception as error:
    print(json.dumps({"error": f"the compiler cannot be imported: {type(error).__name__}: {error}"}), flush=True)
else:
    main()
"""


class _Compiler:
    """A child process that imported Numba and compiles one kernel after the other."""

    def __init__(self, env: dict[str, str]):
        import subprocess  # 4 ms

        command = [sys.executable, "-P", "-c", _CHILD]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # In a session of its own, as the terminal would send Ctrl-C to it too, for which it has only a traceback.
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)

    def compile(self, spec: Kernel) -> dict:
        """{"ok": True} or {"error": why}"""
        try:
            self.process.stdin.write(spec.text() + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:  # the child ended before it could read
            answer = ""
        return json.loads(answer) if answer else {"error": _ended(self.process.wait())}

    def kill(self) -> None:
        """End it in the middle of a kernel."""
        self.process.kill()

    def close(self) -> None:
        with self.process, contextlib.suppress(OSError):
            self.process.stdin.close()


def _ended(code: int) -> str:
    """What is said of a compiler process that ended without an answer; below 0: the signal that ended it."""
    return f"compiler process ended with code {code}" + "; there may be too little memory" * (code < 0)


keep_compilers = False  # True: they wait for the next kernels until release_compilers(), in a few hundred MB each
_kept: dict[tuple, list[_Compiler]] = {}  # by what a compiler is started with


def release_compilers() -> None:
    """End the compilers that were kept."""
    for compilers in _kept.values():
        while compilers:
            compilers.pop().close()


def compile_missing(specs: list[Kernel], progress=None) -> None:
    """Compile `specs` into the cache, in as many child processes as cores. They take kernels from both ends: neighbours
    share functions, which a process compiles once.
    """
    queue, done, failed, lock = list(specs), 0, [], threading.Lock()
    running: list[_Compiler] = []
    refused: list[str] = []  # why a process could not be started
    n_children = min(len(specs), cores.n_logical())
    log.info("compiling %d kernels for %s in %d processes", len(specs), target.current().title, n_children)
    if progress:
        progress(0, len(specs), "")
    env = {
        **os.environ,
        "IKPY_CACHE": str(cache_dir().parent),
        "PYTHONPATH": os.pathsep.join([str(_PACKAGE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    kept = _kept.setdefault((sys.executable, *sorted(item for item in env.items() if "IKPY" in item[0])), [])

    def serve(end: int):
        nonlocal done
        with lock:
            compiler = kept.pop() if kept else None
        try:
            compiler = compiler or _Compiler(env)
        except OSError as error:  # too few descriptors or processes: those that run do the work
            refused.append(error.strerror or str(error))
            return
        running.append(compiler)
        while True:
            with lock:
                if not queue or failed:
                    break
                spec = queue.pop(end)
            result = compiler.compile(spec)
            with lock:
                if "error" in result:
                    failed.append(f"{spec}: {result['error']}")
                done += 1
                if progress:
                    progress(done, len(specs), str(spec))
        with lock:
            if keep_compilers and not failed:
                kept.append(compiler)
                return
        compiler.close()

    threads = [threading.Thread(target=serve, args=(-(i % 2),), daemon=True) for i in range(n_children)]
    try:
        started = list(itertools.takewhile(_starts, threads))
        for t in started:
            t.join()
        if not started:
            serve(-1)
    except BaseException:  # Ctrl-C: nobody waits for the kernels that are being compiled
        queue.clear()
        for compiler in running:
            compiler.kill()
        raise
    if failed:
        raise JitError("; ".join(failed))
    if queue:
        raise JitError(f"no compiler process can be started: {refused[0]}")


def _starts(thread: threading.Thread) -> bool:
    """Start a thread; False where the system has no more."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def pack_words(words) -> ctypes.Array:
    """Arguments as the 8-byte words of the ABI: ints and addresses as they are, floats as float32 bits, arrays by
    their data address."""
    out = (ctypes.c_int64 * max(len(words), 1))()
    for i, w in enumerate(words):
        if hasattr(w, "ctypes"):
            w = w.ctypes.data
        out[i] = (
            struct.unpack("<I", struct.pack("<f", w))[0]
            if isinstance(w, float) or type(w).__name__ == "float32"
            else int(w)
        )
    return out


_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def function(address: int):
    """A Python callable (args address, ith, nth) for a kernel address; it runs without the GIL."""
    return _SIGNATURE(address)


def call(spec: Kernel, *words, nth: int = 1) -> None:
    """Run one kernel from Python: ith = 0 .. nth-1, one after the other. For tests, notebooks and load-time work."""
    fn = function(load([spec])[spec])
    args = pack_words(words)
    for ith in range(nth):
        fn(ctypes.addressof(args), ith, nth)


def assembly(spec: Kernel, ir: bool = False) -> str:
    """Assembly (or optimized LLVM IR) of a kernel for the current target, which need not be runnable here.
    Imports Numba."""
    from . import compile as compiler

    return compiler.text_of(spec, ir)
