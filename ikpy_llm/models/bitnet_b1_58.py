"""BitNet b1.58 2B4T: as bitnet, with the square of what is positive as activation."""

from __future__ import annotations

from functools import partial

from ikpy_llm.models import bitnet

build = partial(bitnet.build, act="relu2")
