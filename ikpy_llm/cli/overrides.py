"""Flags that state metadata in place of the file's: --override-kv, and those that stretch the context."""

from __future__ import annotations

from ikpy_llm.errors import IkpyError

ROPE = {  # field of ModelOptions: key after the architecture
    "rope_scaling": "rope.scaling.type",
    "rope_scale": "rope.scaling.factor",
    "rope_freq_base": "rope.freq_base",
    "yarn_orig_ctx": "rope.scaling.original_context_length",
    "yarn_ext_factor": "rope.scaling.yarn_ext_factor",
    "yarn_attn_factor": "rope.scaling.yarn_attn_factor",
    "yarn_beta_slow": "rope.scaling.yarn_beta_slow",
    "yarn_beta_fast": "rope.scaling.yarn_beta_fast",
}
WORDS = {"true": True, "false": False}
TYPES = {"int": int, "float": float, "str": str, "bool": lambda text: WORDS[text.lower()]}


def of(options) -> dict[str, object]:
    """What engine.file.overrides takes; those of --override-kv win."""
    found = {key: getattr(options, name) for name, key in ROPE.items() if getattr(options, name) is not None}
    if options.rope_freq_scale is not None:
        if options.rope_scale is not None:
            raise IkpyError("--rope-scale N and --rope-freq-scale 1/N exclude each other")
        found["rope.scaling.factor"] = 1 / options.rope_freq_scale
    if found.get("rope.scaling.yarn_ext_factor", 0) < 0:  # llama.cpp's word for what is usual
        del found["rope.scaling.yarn_ext_factor"]
    return found | dict(one(text) for text in options.override_kv)


def one(text: str) -> tuple[str, object]:
    """KEY=TYPE:VALUE"""
    key, _, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    try:
        if key and colon:
            return key, TYPES[kind](value)
    except (KeyError, ValueError):
        pass
    raise IkpyError(f"--override-kv: '{text}' is not KEY=TYPE:VALUE with int, float, bool (true, false) or str as TYPE")
