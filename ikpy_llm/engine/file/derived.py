"""Tensors whose bytes are computed when they are wanted, mostly from others of the file; see gguf.Tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from ikpy_llm.kernels.quants import table

log = logging.getLogger("ikpy.weights")


class Derived:
    """`make()` gives the bytes, uint8; it is called when they are first wanted, and again after `release`.

    stored_type: the type in the file, which reports name; the same as type_name where it is not given.
    """

    def __init__(
        self,
        name: str,
        type_name: str,
        shape: tuple[int, ...],
        make: Callable[[], np.ndarray],
        source: str = "",
        stored_type: str = "",
    ):
        self.name, self.type_name, self.shape, self._make, self.source = name, type_name, shape, make, source
        self.type_id = table.by_name(stored_type or type_name).id
        self.n_bytes = table.tensor_bytes(type_name, shape)
        self._bytes: np.ndarray | None = None
        self.is_part = False  # rows of another tensor, as they are

    @property
    def data(self) -> np.ndarray:
        """uint8 (n_bytes,)"""
        if self._bytes is None:
            log.debug("%s %s is computed from %s", self.name, self.type_name, self.source)
            self._bytes = np.ascontiguousarray(self._make()).reshape(-1).view(np.uint8)
        return self._bytes

    def release(self) -> None:
        self._bytes = None


def rows_of(tensor, shape: tuple[int, ...], first: int, n: int, name: str) -> Derived:
    """Rows first .. first + n of a matrix of this shape, or numbers of a vector, as a tensor; nothing is copied."""
    size = table.tensor_bytes(tensor.type_name, (1, *shape[1:]))

    def make() -> np.ndarray:
        return tensor.data[first * size : (first + n) * size]

    part = Derived(name, tensor.type_name, (n, *shape[1:]), make, f"rows of {tensor.name}")
    part.is_part = True
    return part
