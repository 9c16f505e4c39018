"""GGUF model files: metadata, and tensors as views of one read-only memory map, split files included."""

import mmap
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ikpy_llm import files, system
from ikpy_llm.engine.file.header import Header
from ikpy_llm.errors import ModelFileError, shown
from ikpy_llm.kernels.run import faults

_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Tensor:
    """One tensor: `shape` is (..., rows, columns), the reverse of ggml's; `offset` counts from the file's start."""

    name: str
    type_name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    part: "_Part" = field(repr=False)

    @property
    def data(self) -> np.ndarray:
        """The tensor's bytes as they lie in the file: uint8 (n_bytes,), read-only, not copied."""
        return self.part.view(self)

    def release(self):
        """Give the pages back to the system; they are read from the file again when touched. No-op where unknown."""
        self.part.release(self)


class _Part:
    """One opened and mapped file."""

    def __init__(self, path: Path):
        self.path, self._fd, name = path, -1, shown(str(path), None)[1:-1]
        try:
            self._fd = files.opened(path)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
        status = os.fstat(self._fd)
        # Not st_ctime_ns: a new name, another owner and a second link change it too, and none of them ends a program.
        self._stamp = status.st_size, status.st_mtime_ns
        try:
            header = Header(self._fd, status.st_size, name)
            self._map = mmap.mmap(self._fd, status.st_size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # I/O error, or shorter than a moment ago
            raise ModelFileError(f"{name}: cannot be read: {error}") from None
        self.meta, self.odd_texts = header.meta, header.odd_texts
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._watched = faults.watch(self._map, self._bytes.ctypes.data, status.st_size)
        self._entries = header.tensors

    def close(self):
        """Close the file; its pages stay mapped while somebody has a view of them. A second call does nothing."""
        fd, self._fd, self._bytes, self._map = self._fd, -1, None, None
        if fd >= 0:
            os.close(fd)

    def __del__(self):
        self.close()

    def _open(self):
        if self._fd < 0:
            raise ModelFileError(f"{self.path}: this model has been closed")

    @property
    def tensors(self) -> list[Tensor]:
        """Made anew at every call: a part holding its tensors would be a cycle, open until the collector runs."""
        return [
            Tensor(name, info.name, info.id, shape, offset, n_bytes, self)
            for name, info, shape, offset, n_bytes in self._entries
        ]

    def view(self, tensor: Tensor) -> np.ndarray:
        """The one place where an offset becomes an address."""
        self._open()
        if not 0 <= tensor.offset <= tensor.offset + tensor.n_bytes <= len(self._bytes):
            raise ModelFileError(f"{self.path}: tensor {shown(tensor.name)} lies outside the file")
        return self._bytes[tensor.offset : tensor.offset + tensor.n_bytes]

    def release(self, tensor: Tensor):
        if not hasattr(mmap, "MADV_DONTNEED"):
            system.lacks("way to give pages of a file back", "it drops those of the model when it needs memory")
            return
        if self._fd < 0:
            return
        page = mmap.PAGESIZE  # whole pages only: the neighbours' stay
        start, end = -(-tensor.offset // page) * page, (tensor.offset + tensor.n_bytes) // page * page
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def check_unchanged(self):
        self._open()
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != self._stamp:
            raise ModelFileError(f"{self.path}: the model file changed while it was in use; load it again")
        if self._watched[faults.LOST]:
            raise ModelFileError(f"{self.path}: parts of the model file cannot be read from its disk; load it again")


class GGUFFile:
    """An opened model: `path`, `meta` {key: int, float, bool, str or list}, `tensors` {name: Tensor}; `odd_texts`: keys
    whose text is not UTF-8.
    """

    def __init__(self, path: Path, parts: list[_Part]):
        self.path, self._parts = path, parts
        self.meta, self.odd_texts = parts[0].meta, parts[0].odd_texts
        self.tensors: dict[str, Tensor] = {}
        for part in parts:
            for tensor in part.tensors:
                if tensor.name in self.tensors:
                    raise ModelFileError(f"{part.path}: tensor {shown(tensor.name)} is in an earlier part too")
                self.tensors[tensor.name] = _as_rows(part, tensor)

    def __repr__(self) -> str:
        return f"<GGUFFile {self.path}: {len(self.tensors)} tensors, {len(self.meta)} keys>"

    def close(self, tensors=()):
        """Close the files, and let go of what was made of them; looking at a tensor is a ModelFileError afterwards."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):  # it may hold a view of the file
                tensor.release()
        for part in self._parts:
            part.close()

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    def check_unchanged(self):
        """ModelFileError if a file's size or time is not what it was, or pages of it could not be read (and were zeros
        since then): what was computed meanwhile is void.
        """
        for part in self._parts:
            part.check_unchanged()


def _as_rows(part: _Part, tensor: Tensor) -> Tensor:
    """The tensor, or what takes it apart into rows if its type weaves them together."""
    from ikpy_llm.kernels.quants.interleaved import weave

    if weave.base_of(tensor.type_name) == tensor.type_name:
        return tensor
    from ikpy_llm.engine.file.unwoven import unwoven

    try:
        return unwoven(tensor)
    except ValueError as error:
        raise ModelFileError(f"{part.path}: tensor {shown(tensor.name)}: {error}") from None


def open_gguf(path) -> GGUFFile:
    """Open and check the model at `path`, and the other parts beside it if it is `x-00001-of-0000N.gguf`.

    Raises ModelFileError, one line, for whatever is wrong with the file.
    """
    path = Path(path)
    first = _Part(path)
    return GGUFFile(path, [first, *_other_parts(path, first)])


def _other_parts(path: Path, first: _Part) -> list[_Part]:
    count, number = _split_number(first, "split.count", 1), _split_number(first, "split.no", 0)
    if count <= 1:
        return []
    name = _PART_NAME.fullmatch(path.name)
    if not name:
        raise ModelFileError(f"{path}: part of a split model; its name has to end in -00001-of-{count:05}.gguf")
    stem = name[1]
    if number != 0 or int(name[2]) != 1:
        raise ModelFileError(f"{path}: a later part of a split model; pass the first, {stem}-00001-of-{count:05}.gguf")
    if int(name[3]) != count:
        raise ModelFileError(f"{path}: key 'split.count' is {count}, the file name says {int(name[3])}")
    parts = []
    for i in range(1, count):
        other = path.with_name(f"{stem}-{i + 1:05}-of-{count:05}.gguf")
        if not other.exists():
            raise ModelFileError(f"{other}: missing; the model has {count} parts, which lie beside each other")
        part = _Part(other)
        if _split_number(part, "split.no", -1) != i or _split_number(part, "split.count", -1) != count:
            raise ModelFileError(f"{other}: not part {i + 1} of {count}: see keys 'split.no' and 'split.count'")
        parts.append(part)
    n_tensors = len(first.tensors) + sum(len(part.tensors) for part in parts)
    expected = _split_number(first, "split.tensors.count", n_tensors)
    if expected != n_tensors:
        raise ModelFileError(f"{path}: key 'split.tensors.count' is {expected}, the parts have {n_tensors}")
    return parts


def _split_number(part: _Part, key: str, default: int) -> int:
    value = part.meta.get(key, default)
    if type(value) is not int or not -1 <= value <= 65_536:
        raise ModelFileError(f"{part.path}: key '{key}' is {shown(value)}; a count up to 65536 is accepted")
    return value
