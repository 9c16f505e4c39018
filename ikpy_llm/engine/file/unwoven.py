"""Tensors of interleaved types (and I2_S) as rows of their base type, which is what kernels read."""

from __future__ import annotations

import math

import numpy as np

from ikpy_llm.engine.file.derived import Derived
from ikpy_llm.kernels.derive import api
from ikpy_llm.kernels.quants import table
from ikpy_llm.kernels.quants.interleaved import weave
from ikpy_llm.kernels.run import cores
from ikpy_llm.kernels.run.memory import Memory


def unwoven(stored) -> Derived:
    """`stored` (gguf.Tensor) taken apart when its bytes are wanted; `type_id` stays that of the file.

    ValueError for a shape that cannot be taken apart.
    """
    *leading, columns = stored.shape
    weave.check(stored.type_name, leading[-1] if leading else 1, columns)

    size, base = (math.prod(leading), columns), weave.base_of(stored.type_name)

    def make() -> np.ndarray:  # it must not hold the tensor that holds it: the file would stay open until a collection
        memory = Memory(table.tensor_bytes(base, stored.shape))
        api.unweave(stored.data, stored.type_name, *size, memory.bytes, cores.default_threads())
        stored.release()
        return memory.bytes

    kind, source = stored.type_name, f"rows of {stored.type_name}"
    return Derived(stored.name, base, stored.shape, make, source, kind)
