"""One file per architecture, named as in GGUF's general.architecture; the folder is the registry.

An architecture file has `build(graph, params) -> Value`: the ops of one step from token ids to logits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ikpy_llm.errors import ModelFileError, shown


def architectures() -> list[str]:
    """Names of the architectures there is a file for."""
    return sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem != "__init__")


def builder(meta: Mapping[str, object], file: str) -> Callable:
    """The `build` function for a file with this metadata; ModelFileError where we have none."""
    architecture = meta.get("general.architecture")
    known = ", ".join(architectures())
    if not isinstance(architecture, str):
        raise ModelFileError(f"{file}: metadata key 'general.architecture' is {shown(architecture)}; accepted: {known}")
    if meta.get("general.type", "model") != "model":
        raise ModelFileError(f"{file}: metadata key 'general.type' is {shown(meta['general.type'])}; accepted: 'model'")
    name = architecture.replace("-", "_").replace(".", "_")  # bitnet-b1.58 is bitnet_b1_58.py
    if name not in architectures():
        raise ModelFileError(f"{file}: general.architecture is {shown(architecture)}; there are: {known}")
    return importlib.import_module(f"ikpy_llm.models.{name}").build
