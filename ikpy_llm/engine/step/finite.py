"""Which number of a tensor is not finite, for the error that names it."""

from __future__ import annotations

import math

import numpy as np

from ikpy_llm.errors import ModelFileError, shown
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.derive.api import dequantize
from ikpy_llm.kernels.quants import get, table


def error(path, t, data: np.ndarray, matrix: int) -> ModelFileError:
    """About the first such number in a matrix of tensor t (bytes `data`), or in a vector."""
    *many, rows, k = (1, 1, *t.shape)
    size = layout.file_bytes(t.type_name, k)
    part = data[matrix * rows * size : (matrix + 1) * rows * size]
    row = first_row(part, t.type_name, rows, k)
    place = f"row {row}" if rows > 1 else ""
    if math.prod(many) > 1:
        place = f"matrix {matrix}, {place}" if place else f"matrix {matrix}"
    return _error(path, t, part[row * size : (row + 1) * size], k, place)


def first_row(data: np.ndarray, type_name: str, rows: int, k: int) -> int:
    """The first row with such a number; 0 if there is none."""
    bad = np.zeros(1, np.int64)
    jit.call(jit.Kernel("derive.finite", type=type_name), data, layout.file_bytes(type_name, k), rows, k, bad)
    return max(int(bad[0]) - 1, 0)


def check_rows(path, t, ids: np.ndarray) -> None:
    """ModelFileError for the first of the rows `ids` of a matrix with such a number."""
    k, size = t.shape[-1], layout.file_bytes(t.type_name, t.shape[-1])
    for row in dict.fromkeys(ids.tolist()):
        data, bad = t.data[row * size : (row + 1) * size], np.zeros(1, np.int64)
        jit.call(jit.Kernel("derive.finite", type=t.type_name), data, size, 1, k, bad)
        if bad[0]:
            raise _error(path, t, data, k, f"row {row}")


def _error(path, t, row: np.ndarray, k: int, place: str) -> ModelFileError:
    """`row`: its bytes."""
    values = dequantize(row, t.type_name, (1, k))[0]
    columns = np.flatnonzero(~np.isfinite(values))
    if get(t.type_name).is_float:
        what, place = f"the value {values[columns[0]]}", f"{place}, column {columns[0]}" if place else str(columns[0])
    else:
        what = "a scale that is not a finite number"
        if len(columns) and not get(t.type_name).row:  # a scale of the row is one of all columns
            place += f", block of columns from {columns[0]}"
    kind = table.by_id(t.type_id).name
    made = f", computed from {t.source}" if getattr(t, "source", "") and kind == t.type_name else ""
    return ModelFileError(
        f"{path}: tensor {shown(t.name)} ({kind}{made}) has {what} at {place}; finite numbers are accepted, the file "
        "may be damaged"
    )
