"""Ids of special tokens that the file states and its vocabulary does not have: they count as not stated."""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger("ikpy.vocab")
_PREFIX, _SUFFIX = "tokenizer.ggml.", "_token_id"


def outside(meta: Mapping[str, object]) -> dict[str, int]:
    """Keys of special tokens whose id is none of the vocabulary's, and the ids. A converter writes 2**32 - 1 for -1."""
    tokens = meta.get(_PREFIX + "tokens")
    n = len(tokens) if hasattr(tokens, "__len__") else 0
    ids = {k: v for k, v in meta.items() if k.startswith(_PREFIX) and k.endswith(_SUFFIX) and type(v) is int}
    return {key: value for key, value in ids.items() if not 0 <= value < n}


def warn(meta: Mapping[str, object], path) -> None:
    """One warning for all of them."""
    if (found := outside(meta)) and meta.get(_PREFIX + "tokens"):
        named = ", ".join(f"{key} = {value}" for key, value in found.items())
        log.warning("%s: ids outside the vocabulary count as not stated: %s", path, named)
