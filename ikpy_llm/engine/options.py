"""Settings of one loaded model, each stated once: default, meaning, environment variable."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from ikpy_llm import arguments
from ikpy_llm.arguments import plain
from ikpy_llm.errors import IkpyError, shown
from ikpy_llm.kernels.kv.types import KV_TYPES, kv_type

MAX_THREADS = 1024
DEFAULT_CTX = 4096  # rows of the KV cache unless asked for; models of today were trained for up to 100 times that
MAX_MIB = 1 << 40  # its bytes still fit into a word of 64 bits
# option -> smallest and largest accepted number
LIMITS = {"n_ctx": (0, None), "n_batch": (1, None), "n_ubatch": (1, None), "mla": (0, 3), "amb": (0, MAX_MIB)}
LIMITS |= {"threads": (None, MAX_THREADS), "threads_batch": (None, MAX_THREADS)}  # below 0: automatic


def _option(default, help: str, env: str = ""):
    return field(default=default, metadata={"help": help, "env": env})


@dataclass(frozen=True)
class Options:
    """What `Model.load` and `Session` accept. The environment has no say here: see `options_of`."""

    n_ctx: int | None = _option(
        None,
        f"positions the KV cache holds; 0 = as many as the model was trained for, None = that, at most {DEFAULT_CTX}",
    )
    n_batch: int = _option(2048, "tokens handed over at once at most: matters only below n_ubatch (llama.cpp's -b)")
    n_ubatch: int = _option(512, "tokens computed at once at most")
    threads: int = _option(0, "worker threads; 0 or less = the cores this process may use", "IKPY_THREADS")
    threads_batch: int = _option(0, "worker threads of prompts; 0 or less = as many as `threads`", "IKPY_THREADS_BATCH")
    repack: bool | None = _option(
        None, "weave weights into panels at load: yes, no, None = where memory allows", "IKPY_REPACK"
    )
    pp_requant: bool = _option(
        False,
        "prompts use the matrices requantized to Q8_0, as the reference does, in memory of their own; tokens do not",
        "IKPY_PP_REQUANT",
    )
    pin: bool | None = _option(None, "bind threads to cores; None = if there are as many threads as cores", "IKPY_PIN")
    cache_type_k: str = _option("f16", "type of the keys in the KV cache: " + ", ".join(KV_TYPES), "IKPY_CACHE_TYPE_K")
    cache_type_v: str = _option("f16", "type of the values in the KV cache", "IKPY_CACHE_TYPE_V")
    khad: bool = _option(
        False, "keys (and queries) go through a Hadamard rotation, which spreads outliers", "IKPY_KHAD"
    )
    vhad: bool = _option(False, "values go through a Hadamard rotation, undone after attention", "IKPY_VHAD")
    flash_attn: bool = _option(
        True, "fused attention with integer products; off: a plain one in float32, slow, as oracle", "IKPY_FLASH_ATTN"
    )
    swa_full: bool = _option(
        False,
        "layers with a sliding window keep all positions: more memory, and one can go back to any of them",
        "IKPY_SWA_FULL",
    )
    mla: int = _option(
        3,
        "latent attention (DeepSeek): 0 = keys and values of all heads are kept; 1 = latents are, and multiplied with; "
        "2 = latents are, and expanded when used; 3 = prompts as 2, single tokens as 1",
        "IKPY_MLA",
    )
    amb: int = _option(
        256, "MiB that expanding latents may take: heads are then done in groups; 0 = no limit", "IKPY_AMB"
    )
    ser: str | None = _option("", "Kmin,t: after the Kmin best experts only those above t times the best", "IKPY_SER")
    no_fusion: str = _option("", "comma-separated fusion rows to leave out, `all` for none at all", "IKPY_NO_FUSION")
    check: bool = _option(
        False, "fill working memory with NaN before use, so that reading what nobody wrote shows", "IKPY_CHECK"
    )

    def __post_init__(self):
        for f in fields(self):
            value = arguments.of_kind(f.type)(f.name, getattr(self, f.name))
            if f.name in LIMITS and value is not None:
                arguments.whole(f.name, value, *LIMITS[f.name])
            object.__setattr__(self, f.name, max(0, value) if "threads" in f.name else value)
        for name in ("cache_type_k", "cache_type_v"):
            object.__setattr__(self, name, kv_type(getattr(self, name)).name)
        self.expert_limits()
        object.__setattr__(self, "n_ubatch", min(self.n_ubatch, self.n_batch))

    def expert_limits(self) -> tuple[int, float]:
        """`ser` as (Kmin, t); (0, 0.0) where all experts are used."""
        k_min, _, share = (self.ser or "0,0").partition(",")
        try:
            limits = int(k_min), float(share)
        except ValueError:
            limits = -2, 2.0
        if limits[0] < -1 or not 0 <= limits[1] <= 1:
            raise IkpyError(
                f"ser is {shown(self.ser)}; Kmin,t, a number of experts and a share from 0 to 1, is accepted"
            )
        return limits

    def without(self) -> frozenset[str]:
        """Names of the fusion rows that are switched off."""
        return frozenset(filter(None, (s.strip() for s in self.no_fusion.split(","))))


def options_of(**given) -> Options:
    """Options as they are given, else as the environment says, else the defaults. None is not given, nor are 0
    threads."""
    given = {name: value for name, value in given.items() if value is not None}
    given = {name: value for name, value in given.items() if "threads" not in name or plain(value) != 0}
    told = {
        f.name: _parse(f, os.environ[f.metadata["env"]]) for f in fields(Options) if f.metadata["env"] in os.environ
    }
    return Options(**told | given)


def _parse(f, text: str):
    """The value of an environment variable for field `f`."""
    words = {
        "1": True,
        "on": True,
        "true": True,
        "yes": True,
        "0": False,
        "off": False,
        "false": False,
        "no": False,
        "": False,
    }
    if "bool" in f.type:
        if text.lower() not in words:
            raise IkpyError(f"environment variable {f.metadata['env']} = {shown(text)}: on or off is accepted")
        return words[text.lower()]
    if f.type == "int":
        try:
            return int(text)
        except ValueError:
            raise IkpyError(
                f"environment variable {f.metadata['env']} = {shown(text)}: an integer is accepted"
            ) from None
    return text
