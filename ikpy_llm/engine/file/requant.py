"""Matrices requantized to Q8_0 for prompts (--pp-requant), beside the exact ones that single tokens use."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ikpy_llm.engine.file.derived import Derived
from ikpy_llm.kernels.compiler.jit import Kernel
from ikpy_llm.kernels.derive.api import dequantize
from ikpy_llm.kernels.quants import get, table

SUFFIX = " as Q8_0"  # of the name
CHUNK = 1 << 24  # weights at a time


def is_small(t) -> bool:
    """Whether the tensor's type has less than 8 bits per weight, so that Q8_0 is a wider one."""
    info = table.by_name(t.type_name)
    return not get(t.type_name).is_float and info.bytes < info.block


def is_made(t) -> bool:
    return t.name.endswith(SUFFIX)


def kernels(tensors: Iterable) -> list[Kernel]:
    """What requantizing these takes."""
    return [Kernel("derive.dequant", type=name) for name in dict.fromkeys(t.type_name for t in tensors)]


def as_q8_0(t) -> Derived:
    """The tensor requantized, when its bytes are asked for."""
    return Derived(t.name + SUFFIX, "Q8_0", t.shape, lambda: requantized(t), t.name)


def requantized(t) -> np.ndarray:
    """uint8: rows of Q8_0."""
    k = t.shape[-1]
    rows, size = t.data.reshape(-1, table.row_bytes(t.type_name, k)), table.row_bytes("Q8_0", k)
    out, step = np.empty((len(rows), size), np.uint8), max(1, CHUNK // k)
    for i in range(0, len(rows), step):
        part = rows[i : i + step]
        out[i : i + step] = q8_0(multiplied(part, t.type_name, (len(part), k))).reshape(len(part), size)
    t.release()
    return out


def multiplied(data: np.ndarray, type_name: str, shape: tuple[int, int]) -> np.ndarray:
    """float32 (rows, columns): the numbers that products multiply with. Of the types with a gain they are not those
    that rows are decoded to.
    """
    x, q = dequantize(data, type_name, shape), get(type_name)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are found where the matrix is read
        return x if q.is_float or q.gain == 1 else x * np.float32(q.gain)


def q8_0(x: np.ndarray) -> np.ndarray:
    """Bytes of float32 numbers as blocks of Q8_0: uint8 (blocks, 34). A block with a number that is not finite, or too
    large for a half float, gets a scale that is not finite, which is found where the matrix is read.
    """
    blocks = np.ascontiguousarray(x).reshape(-1, 32)
    with np.errstate(over="ignore", invalid="ignore"):
        d = abs(blocks).max(1, keepdims=True) / 127
        codes = np.rint(np.divide(blocks, d, out=np.zeros_like(blocks), where=d > 0)).astype(np.int8)
        return np.concatenate([d.astype(np.float16).view(np.uint8), codes.view(np.uint8)], 1)
