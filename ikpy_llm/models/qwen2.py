"""Qwen2 and Qwen2.5: as llama, with biases on q, k and v, and rotation of the halves of a head."""

from __future__ import annotations

from functools import partial

from ikpy_llm.models import llama

build = partial(llama.build, rope="neox")
