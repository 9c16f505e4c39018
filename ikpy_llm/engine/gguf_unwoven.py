"""Tensors of interleaved types (and I2_S) as rows of their base type, which is what kernels read."""

from __future__ import annotations

import numpy as np

from ikpy_llm.engine.memory import Memory
from ikpy_llm.kernels import cores
from ikpy_llm.kernels.derive import api
from ikpy_llm.kernels.quants import table, weave


class UnwovenTensor:
    """`stored` (gguf.Tensor) taken apart when its bytes are asked for, and again after `release`; see gguf.Tensor.

    ValueError for a shape that cannot be taken apart.
    """

    def __init__(self, stored):
        self.stored, self.name, self.shape, self.part = stored, stored.name, stored.shape, stored.part
        self.type_name = weave.base_of(stored.type_name)
        self.type_id, self.offset = stored.type_id, stored.offset
        *leading, columns = stored.shape
        self._rows, self._columns = int(np.prod(leading, dtype=np.int64)), columns
        weave.check(stored.type_name, leading[-1] if leading else 1, columns)
        self.n_bytes = table.tensor_bytes(self.type_name, stored.shape)
        self._memory: Memory | None = None

    @property
    def data(self) -> np.ndarray:
        """Rows of type `type_name`: uint8 (n_bytes,)."""
        if self._memory is None:
            memory, threads = Memory(self.n_bytes), cores.default_threads()
            api.unweave(self.stored.data, self.stored.type_name, self._rows, self._columns, memory.bytes, threads)
            self._memory = memory
            self.stored.release()
        return self._memory.bytes

    @property
    def address(self) -> int:
        """Where `data` lies; valid until `release`."""
        return self.data.ctypes.data

    def release(self) -> None:
        self._memory = None
