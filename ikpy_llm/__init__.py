"""ikpy: runs GGUF language models on the CPU. Start with `Model.load(path)`; nothing is imported before it is used."""

from __future__ import annotations

from ikpy_llm.version import VERSION as __version__

TYPE_CHECKING = False  # type checkers take it for true; importing typing takes longer than this file

if TYPE_CHECKING:
    from ikpy_llm.api import Model as Model
    from ikpy_llm.api import Timings as Timings
    from ikpy_llm.errors import ArgumentError as ArgumentError
    from ikpy_llm.errors import IkpyError as IkpyError
    from ikpy_llm.errors import ModelFileError as ModelFileError
    from ikpy_llm.kernels.derive.api import dequantize as dequantize
    from ikpy_llm.kernels.derive.api import matmul as matmul
    from ikpy_llm.kernels.derive.api import quant_types as quant_types

# name -> module that has it
_WHERE = {
    "Model": "api",
    "Timings": "api",
    "ArgumentError": "errors",
    "IkpyError": "errors",
    "ModelFileError": "errors",
    "dequantize": "kernels.derive.api",
    "matmul": "kernels.derive.api",
    "quant_types": "kernels.derive.api",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'ikpy_llm' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"ikpy_llm.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
