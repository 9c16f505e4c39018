"""Metadata that the caller states in place of the file's: --override-kv, and the flags that stretch the context."""

from __future__ import annotations

from collections.abc import Mapping

from ikpy_llm.arguments import plain, refuse
from ikpy_llm.errors import IkpyError, shown

OWN = ("general.", "tokenizer.", "quantize.", "split.")  # keys that do not begin with the architecture


def apply(file, overrides: Mapping[str, object] | None) -> None:
    """Change `file.meta`; a key that begins neither with the architecture nor with one of OWN gets it put before.
    `file.overridden` names them: one that no engine knows is a mistake then (claims.py).

    IkpyError for a key or value that is none.
    """
    if not isinstance(overrides, Mapping | None):
        refuse("override_kv", overrides, "a dictionary of keys and values")
    architecture, file.overridden = file.meta.get("general.architecture"), set()
    for key, value in () if overrides is None else overrides.items():
        key, value = plain(key), plain(value)
        if not isinstance(key, str) or not key or not isinstance(value, bool | int | float | str):
            raise IkpyError(f"override_kv: {shown(key)} = {shown(value)}; names with a number, text, True or False")
        full = key if key.startswith((*OWN, f"{architecture}.")) else f"{architecture}.{key}"
        file.meta[full] = value
        file.overridden.add(full)
