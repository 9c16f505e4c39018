"""Memory on guard pages: what a kernel reads or writes outside of its buffers ends the process at once.

Every buffer whose address a kernel gets then lies alone between two pages that nobody may touch: with "end" its last
byte stands before the one, with "start" its first byte stands after the other. These are: tensors (as they lie in the
file, or computed), the panels of each matrix, the KV cache of each layer, every value and scratch of a program with its
exact size, program words, tables of rotations, state, token ids and logits. Systems with mprotect only.

The bytes after a buffer that kernels may touch are part of its size: kernels/derive/layout.py (panels, activations),
kernels/attention/layout.py (KV cache, scratch) and engine/program/lowering.py (values) say so. There is no other.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys

import numpy as np

from ikpy_llm.engine.cache import kv_cache
from ikpy_llm.engine.file import derived, gguf, requant
from ikpy_llm.engine.graph import rope
from ikpy_llm.engine.measure import trace
from ikpy_llm.engine.program import planner, program
from ikpy_llm.engine.step import session, weights, workers
from ikpy_llm.kernels.derive import api, bench
from ikpy_llm.kernels.quants.interleaved import weave
from ikpy_llm.kernels.run import memory

SIDES = "end", "start"
HERE = sys.platform.startswith("linux")
PAGE = mmap.PAGESIZE
ARRAYS = session, kv_cache, rope, requant, trace, weights, workers, api, bench  # modules whose NumPy arrays kernels get
_side = ""  # where guards stand close: one of SIDES, or "" for memory as always


@contextlib.contextmanager
def on(side: str):
    """What is allocated inside of the block lies on guard pages; "": as always."""
    global _side
    _install()
    before, _side = _side, side
    try:
        yield
    finally:
        _side = before


def block(n_bytes: int, fill: int = 0) -> np.ndarray:
    """uint8 (n_bytes,) on guard pages, of bytes `fill`; unmapped with the last view of it."""
    size = -(-max(n_bytes, 1) // PAGE) * PAGE
    whole = mmap.mmap(-1, size + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = np.frombuffer(whole, np.uint8)
    for start in (view.ctypes.data, view.ctypes.data + PAGE + size):
        if _libc().mprotect(ctypes.c_void_p(start), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = PAGE if _side == "start" else PAGE + size - n_bytes
    out = view[first : first + n_bytes]
    if fill:
        out[:] = fill
    return out


def copy(data: np.ndarray) -> np.ndarray:
    """The array on guard pages, or itself where there are none."""
    if not _side:
        return data
    out = block(data.nbytes).view(data.dtype).reshape(data.shape)
    out[...] = data
    out.flags.writeable = data.flags.writeable
    return out


@functools.cache
def _libc():
    return ctypes.CDLL(None, use_errno=True)


class _Arrays:
    """NumPy for a module of ours: its zeros and empty lie on guard pages, where there are any."""

    def __getattr__(self, name):
        return getattr(np, name)

    def zeros(self, shape, dtype=float):
        return _array(shape, dtype, 0) if _side else np.zeros(shape, dtype)

    def empty(self, shape, dtype=float):
        return _array(shape, dtype, 0xFF) if _side else np.empty(shape, dtype)  # NaN: reading it shows


def _array(shape, dtype, fill: int) -> np.ndarray:
    dtype = np.dtype(dtype)
    n = int(np.prod(shape, dtype=np.int64))
    return block(n * dtype.itemsize, fill).view(dtype).reshape(shape)


@functools.cache
def _install() -> None:
    """Put ourselves where memory gets its address; nothing changes while `_side` is empty."""
    _replace(memory.Memory, "__init__", _memory)
    _replace(memory, "copied", lambda original, data: copy(original(data)))
    _replace(program.Program, "_word", _word)
    panel = weights.Weights.panel
    weights.Weights.panel = lambda self, name: _panel(panel, self, name)
    _replace(gguf._Part, "view", _view)
    _replace(weave, "move_table", lambda original, *args: copy(original(*args)))
    _replace(planner, "plan", _plan)
    data = derived.Derived.data.fget
    derived.Derived.data = property(lambda self: _derived(data, self))
    for module in ARRAYS:
        module.np = _Arrays()


def _replace(place, name: str, ours) -> None:
    original = getattr(place, name)

    @functools.wraps(original)
    def call(*args, **kwargs):
        return ours(original, *args, **kwargs) if _side else original(*args, **kwargs)

    setattr(place, name, call)


def _memory(original, self, n_bytes, fill=False, huge=True):
    self.n_bytes, self.bytes = n_bytes, block(n_bytes, 0xFF if fill else 0)
    self.address = self.bytes.ctypes.data


def _plan(original, *args, **kwargs):
    """Buffers have the bytes they need, not whole cache lines."""
    before, planner.ALIGN = planner.ALIGN, 1
    try:
        return original(*args, **kwargs)
    finally:
        planner.ALIGN = before


def _word(original, self, word, outside):
    """Every buffer of a program has its own pages, also those that are never in use at once."""
    if word not in self.plan.offsets:
        return original(self, word, outside)
    held = vars(self).setdefault("_guarded", {})
    if word not in held:
        held[word] = block(self.plan.sizes[word], 0xFF)
    return held[word].ctypes.data


def _panel(original, self, name):
    """A model whose panels lie on guard pages keeps them there: programs may be made later, outside of `on`."""
    if not vars(self).setdefault("_side", _side):
        return original(self, name)
    held = vars(self).setdefault("_guarded", {})
    if name not in held:
        (matrix,) = (t for t in self.matrices if t.name == name)
        held[name] = block(weights.weight_bytes(matrix))
    return held[name].ctypes.data


def _view(original, self, tensor):
    found, held = original(self, tensor), vars(self).setdefault("_guarded", {})
    if tensor.name not in held:
        held[tensor.name] = copy(found)
    return held[tensor.name]


def _derived(original, self):
    """Parts of other tensors are cut out of them, too."""
    if not _side or self._bytes is not None:
        return original(self)
    self._bytes = copy(original(self))
    return self._bytes
