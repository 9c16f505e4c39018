"""Tensors of interleaved types (and I2_S) as rows of their base type, which is what kernels read."""

from __future__ import annotations

import math

import numpy as np

from ikpy_llm.engine.derived import Derived
from ikpy_llm.kernels import cores
from ikpy_llm.kernels.derive import api
from ikpy_llm.kernels.pages import Memory
from ikpy_llm.kernels.quants import weave


def unwoven(stored) -> Derived:
    """`stored` (gguf.Tensor) taken apart when its bytes are wanted; `type_id` stays that of the file.

    ValueError for a shape that cannot be taken apart.
    """
    *leading, columns = stored.shape
    weave.check(stored.type_name, leading[-1] if leading else 1, columns)

    def make() -> np.ndarray:
        memory = Memory(tensor.n_bytes)
        size = math.prod(leading), columns
        api.unweave(stored.data, stored.type_name, *size, memory.bytes, cores.default_threads())
        stored.release()
        return memory.bytes

    kind, source = stored.type_name, f"rows of {stored.type_name}"
    tensor = Derived(stored.name, weave.base_of(kind), stored.shape, make, source, kind)
    return tensor
