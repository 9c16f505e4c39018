"""Quantization types, one file each: `get("Q4_K")` is its declaration, `names()` lists them, `table` has the sizes of
every GGUF type."""

from .base import Plain, Quant, file_types, get, names

__all__ = ["Plain", "Quant", "file_types", "get", "names"]
