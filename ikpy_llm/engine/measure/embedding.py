"""One vector for a text: which rows of the last norm are joined, as llama.cpp's embedding does it, and their length."""

from __future__ import annotations

import numpy as np

from ikpy_llm.errors import IkpyError, ModelFileError, shown

POOLING = ("none", "mean", "cls", "last")  # in the order of <architecture>.pooling_type


def pooling_of(meta: dict, path) -> str:
    """What the file asks for; "mean" where it says nothing (or "none": a model that was not made for this)."""
    key = f"{meta.get('general.architecture', '')}.pooling_type"
    value = meta.get(key, 0)
    if isinstance(value, bool) or value not in range(len(POOLING)):
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(POOLING))
        raise ModelFileError(f"{path}: metadata key '{key}' is {shown(value)}; accepted: {known}")
    return POOLING[value] if value else "mean"


def checked(pooling: str) -> str:
    """`pooling`, if it is a name of POOLING."""
    if pooling not in POOLING:
        raise IkpyError(f"pooling is {shown(pooling)}; {', '.join(POOLING)} are accepted")
    return pooling


def pooled(rows: np.ndarray, pooling: str, normalize: bool) -> np.ndarray:
    """float32 (n, n_embd) -> (n_embd,), with "none" (n, n_embd); normalize: vectors of Euclidean length 1, sums in f64.

    mean: the average; cls: the first row; last: the last row.
    """
    match pooling:
        case "mean":
            out = rows.mean(0, dtype=np.float64)
        case "cls":
            out = rows[0]
        case "last":
            out = rows[-1]
        case _:
            out = rows
    if normalize:
        length = np.sqrt(np.square(out, dtype=np.float64).sum(-1, keepdims=True))
        out = out / np.where(length > 0, length, 1.0)
    return out.astype(np.float32)
