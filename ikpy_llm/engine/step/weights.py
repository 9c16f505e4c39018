"""The model's tensors in memory: matrices woven into panels at load, everything else where the file is mapped."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ikpy_llm.engine.file import requant
from ikpy_llm.engine.file.gguf import GGUFFile, Tensor
from ikpy_llm.engine.step import finite
from ikpy_llm.engine.step.workers import Workers
from ikpy_llm.errors import ModelFileError
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.compiler.jit import Kernel
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.quants import table
from ikpy_llm.kernels.run import free_memory, runner
from ikpy_llm.kernels.run import memory as pages

log = logging.getLogger("ikpy.weights")
BATCH = 32 << 20  # bytes woven between two reports and two releases of file pages
ALIGN = 128  # bytes: panels start on a cache-line pair
RESERVE = 256 << 20  # bytes that stay free when we decide to weave


class Weights:
    """`claimed` says how the model uses each tensor: see graph.Graph.claimed.

    Raises ModelFileError for a matrix no kernel can run.
    """

    def __init__(self, file: GGUFFile, tensors: Mapping[str, Tensor], claimed: Mapping[str, str]):
        self.file, self._tensors, self._claimed = file, tensors, claimed
        self.matrices = [tensors[n] for n, use in claimed.items() if "matrix" in use]
        self.offsets: dict[str, int] = {}
        self.packed_bytes = 0
        for t in self.matrices:
            _check(file, t, *matrices_shape(t)[1:])
            self.offsets[t.name] = self.packed_bytes
            self.packed_bytes += -(-weight_bytes(t) // ALIGN) * ALIGN
        for t in (tensors[n] for n, use in claimed.items() if "rows" in use):
            _check(file, t, *matrices_shape(t)[1:])
        self._memory: pages.Memory | None = None

    @property
    def is_packed(self) -> bool:
        return self._memory is not None

    @property
    def n_bytes(self) -> int:
        """Bytes of the matrices as the kernels read them."""
        return self.packed_bytes if self.is_packed else sum(t.n_bytes for t in self.matrices)

    def kernels(self, packed: bool) -> list[Kernel]:
        """What `pack` or `check` needs compiled."""
        return self._kernels("derive.pack" if packed else "derive.finite")

    def _kernels(self, path: str) -> list[Kernel]:
        return [Kernel(path, type=name) for name in dict.fromkeys(t.type_name for t in self.matrices)]

    def memory(self, packed: bool) -> int:
        """Bytes of private memory that the matrices take: panels, or what rows are made of others; at most, with what
        weaving holds for a moment.
        """
        made = [t.n_bytes for t in self.matrices if not isinstance(t, Tensor)]
        return self.packed_bytes + max(made, default=0) if packed else sum(made)

    def fits(self, besides: int) -> bool:
        """Whether weaving leaves the system some memory, with `besides` bytes for other things."""
        free = free_memory.available()
        return free is None or self.packed_bytes + besides + RESERVE <= free

    def read(self, packed: bool, workers: Workers, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Look at all tensors, and weave the matrices if `packed`. ModelFileError for a number that is not finite."""
        self.check_vectors()
        if packed:
            self.pack(workers, progress)
        else:
            self.check(workers)

    def pack(self, workers: Workers, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Weave all matrices into panels, in parallel; pages of the file are given back as they are done with.

        progress(bytes done, bytes of all, tensor name).
        """
        start, kernels = time.perf_counter(), jit.load(self.kernels(True))
        self._memory = pages.Memory(self.packed_bytes)
        done, total = 0, sum(t.n_bytes for t in self.matrices)
        for batch in self._batches():
            self._run(workers, kernels, batch, "derive.pack")
            for t in batch:
                t.release()  # rows of an embedding that is looked up come back when they are used
            done += sum(b.n_bytes for b in batch)
            if progress:
                progress(done, total, batch[-1].name)
        for line in self.report():
            log.info(line)
        log.debug("repacked %.1f MB in %.2f s", total / 1e6, time.perf_counter() - start)

    def check(self, workers: Workers) -> None:
        """ModelFileError for matrices that are not woven and have a number that is not finite, which `pack` finds on
        its way. All are read for that, as the first token reads them; where memory cannot hold them they would be read
        twice, and are not checked.
        """
        free = free_memory.available()
        if free is not None and sum(t.n_bytes for t in self.matrices) > free:
            log.info("weights are larger than the free memory: not checked for numbers that are not finite")
            return
        kernels = jit.load(self.kernels(False))
        for batch in self._batches():
            self._run(workers, kernels, batch, "derive.finite")

    def _batches(self) -> Iterator[list[Tensor]]:
        """The matrices in groups of some BATCH bytes: between them Python obeys Ctrl-C."""
        batch = []
        for t in self.matrices:
            batch.append(t)
            if sum(b.n_bytes for b in batch) >= BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def report(self) -> list[str]:
        """What `pack` does, in a line for each type of the file."""
        lines, matrices = [], [t for t in self.matrices if not requant.is_made(t)]
        for _, name in sorted({(t.type_id, _stored_type(t)) for t in matrices}):
            tensors = [t for t in matrices if _stored_type(t) == name]
            size = sum(t.n_bytes for t in tensors)
            wider = sum(weight_bytes(t) for t in tensors) / size - 1
            many, more = "s" if len(tensors) > 1 else "", f", {wider:.0%} larger" if wider > 0.03 else ""
            lines.append(f"repacked {len(tensors)} tensor{many} of {name} into panels of {layout.width()} rows{more}")
        return lines

    def _run(self, workers: Workers, kernels: dict[Kernel, int], batch: list[Tensor], path: str) -> None:
        """One kernel, derive.pack or derive.finite, on these tensors. ModelFileError as `check`."""
        parts = [(t, i) for t in batch for i in range(matrices_shape(t)[0])]
        held = {t.name: t.data for t in batch}  # making one tensor's bytes may release those of another
        words, bad = np.zeros((len(parts), runner.RECORD), np.int64), np.zeros(len(parts), np.int64)
        for n, (row, (t, i)) in enumerate(zip(words, parts, strict=True)):
            _, rows, k = matrices_shape(t)
            row_bytes, n_bytes = layout.file_bytes(t.type_name, k), layout.weight_bytes(t.type_name, rows, k)
            to = [self.panel(t.name) + i * n_bytes] if path == "derive.pack" else []
            args = held[t.name].ctypes.data + i * rows * row_bytes, row_bytes, rows, k, *to, bad.ctypes.data + 8 * n
            row[runner.KERNEL] = kernels[Kernel(path, type=t.type_name)]
            row[runner.ARGS : runner.ARGS + len(args)] = args
        workers.run(words.ctypes.data, len(parts))
        self.file.check_unchanged()
        if bad.any():
            t, i = parts[int(np.flatnonzero(bad)[0])]
            raise finite.error(self.file.path, t, held[t.name], i)

    def panel(self, name: str) -> int:
        """Address of a matrix's panels."""
        return self._memory.address + self.offsets[name]

    def check_vectors(self) -> None:
        """ModelFileError for a vector with a number that is not finite."""
        for name in (n for n, use in self._claimed.items() if use == "vector"):
            t = self._tensors[name]
            if not np.isfinite(np.frombuffer(t.data, np.float32, t.data.size // 4)).all():
                raise finite.error(self.file.path, t, t.data, 0)

    def check_rows(self, ids: np.ndarray) -> None:
        """ModelFileError for rows of the embedding, which is not read as a whole, that are not finite."""
        for name in (n for n, use in self._claimed.items() if use == "rows"):
            finite.check_rows(self.file.path, self._tensors[name], ids)

    def kept(self, name: str) -> np.ndarray:
        """The bytes of a tensor that programs read as it is. Vectors are copied: they are small, and what a step reads
        from the file are then only the rows of its tokens, at its beginning, just after the file was looked at.
        """
        data = self._tensors[name].data
        return pages.copied(data) if self._claimed.get(name) in ("vector", "table") else data

    def vector(self, name: str) -> np.ndarray:
        """An F32 tensor of the file, not copied."""
        return self.file.tensors[name].data.view(np.float32)


def _stored_type(t: Tensor) -> str:
    """Type in the file; of what is computed from rows that only taking an interleaved type apart makes, theirs."""
    return table.by_id(t.type_id).name if t.type_id >= 0 else t.type_name


def matrices_shape(t: Tensor) -> tuple[int, int, int]:
    """(matrices, rows, columns) of a tensor: one matrix, or one per expert or head."""
    *many, rows, k = (1, *t.shape)
    return math.prod(many), rows, k


def weight_bytes(t: Tensor) -> int:
    """Bytes of all panels of a tensor."""
    n, rows, k = matrices_shape(t)
    return n * layout.weight_bytes(t.type_name, rows, k)


def _check(file: GGUFFile, t: Tensor, rows: int, k: int) -> None:
    try:
        layout.check_matrix(t.type_name, rows, k)
    except (ValueError, KeyError) as error:
        raise ModelFileError(f"{file.path}: tensor '{t.name}': {error.args[0]}") from None
