"""Opens small models as the engine does, for tests below the Python API."""

from ikpy_llm import models
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.options import Options
from ikpy_llm.engine.step.session import Session

DEFAULTS = {"n_ctx": 512, "threads": 2, "check": True}  # check: unwritten memory is NaN


def session(path, progress=None, **options) -> Session:
    """A session on the file; `options` override DEFAULTS."""
    file = open_gguf(path)
    return Session(file, models.builder(file.meta, str(path)), Options(**DEFAULTS | options), progress)
