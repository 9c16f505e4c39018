"""Models to fuzz: tiny ones of every architecture, with tensors of any type, as (metadata, tensors) for gguf_writer."""

from __future__ import annotations

import functools
import math
import string

import numpy as np
import tiny_deepseek2
import tiny_gemma3
import tiny_llama
import tiny_moe
from test_relatives import LONGROPE, WINDOW
from test_relatives import model as relative

from ikpy_llm.engine.file.synthetic import synthetic_tensor
from ikpy_llm.kernels.quants import file_types, table
from ikpy_llm.kernels.quants.interleaved import weave

N_VOCAB = tiny_llama.N_VOCAB
WIDE = {"n_embd": 256, "n_head": 4, "n_head_kv": 2, "head_dim": 64, "n_ff": 256, "n_layer": 1}  # for blocks of 256
SMALL_TYPES = tuple(t for t in file_types() if table.by_name(t).block <= 32 and t != "I2_S")


def _llama(**more):
    options = {k: more.pop(k) for k in ("bias", "tied", "freqs") if k in more}
    m = tiny_llama.meta(**more)
    return m, tiny_llama.shapes(m, **options)


def _moe(**more):
    m = tiny_moe.meta(**more)
    return m, tiny_moe.shapes(m, bias=m["general.architecture"] == "qwen2moe")


def _deepseek2(layout="kv_b", **more):
    m = tiny_deepseek2.meta(layout=layout, **more)
    return m, tiny_deepseek2.shapes(m, layout)


def _gemma3():
    m = tiny_gemma3.meta(n_layer=6)
    return m, tiny_gemma3.shapes(m)


# Name -> makes (metadata, shape of every tensor).
FORMS = {
    "llama": _llama,
    "llama bias": functools.partial(_llama, bias=True, freqs=True, tied=True),
    "llama wide": functools.partial(_llama, **WIDE),
    "llama odd": functools.partial(_llama, n_embd=96, n_head=3, n_head_kv=1, head_dim=20, n_ff=160, n_layer=1),
    "llama moe": functools.partial(_moe, architecture="llama"),
    "qwen2": functools.partial(_llama, architecture="qwen2", bias=True),
    "qwen2moe": functools.partial(_moe, architecture="qwen2moe"),
    "qwen3moe": functools.partial(_moe, architecture="qwen3moe"),
    "gemma3": _gemma3,
    "deepseek2": functools.partial(_deepseek2, n_layer=2),
    "deepseek2 v3": functools.partial(_deepseek2, n_layer=2, **tiny_deepseek2.V3),
    "deepseek2 k_b": functools.partial(_deepseek2, layout="k_b", n_layer=2),
    "gemma2": functools.partial(relative, "gemma2", n_layer=2, **WINDOW),
    "glm4": functools.partial(relative, "glm4", n_layer=2),
    "phi3": functools.partial(relative, "phi3", n_layer=2, **WINDOW),
    "phi3 long": functools.partial(relative, "phi3", n_layer=2, **LONGROPE),
    "smollm3": functools.partial(relative, "smollm3", n_layer=4),
    "bitnet": functools.partial(relative, "bitnet", n_layer=2),
    "bitnet-25": functools.partial(relative, "bitnet-25", n_layer=2, scales=True),
    "bitnet-b1.58": functools.partial(relative, "bitnet-b1.58", n_layer=2),
}


def _qwen3():
    m, shapes = _llama(architecture="qwen3")
    return m, shapes | {f"blk.{i}.attn_{x}_norm.weight": (16,) for i in range(2) for x in "qk"}


FORMS["qwen3"] = _qwen3


@functools.lru_cache(256)
def model(form: str, types: tuple[str, ...] = ("F32",), seed: int = 0) -> tuple[dict, dict]:
    """(metadata, tensors); matrices take the `types` in turn, where their shape allows. Copy it before changing it."""
    m, shapes = FORMS[form]()
    return m, filled(shapes, types, seed)


def filled(shapes: dict, types: tuple[str, ...], seed: int) -> dict:
    """Tensors of these shapes, random."""
    rng, tensors, n = np.random.default_rng(seed), tiny_llama.random(shapes, ("F32",), seed), 0
    for name, (_, shape, raw) in tensors.items():
        if len(shape) == 1 or "gate_inp" in name:
            continue
        kind, n = types[n % len(types)], n + 1
        if fits(kind, shape):
            tensors[name] = (kind, shape, raw if kind == "F32" else encoded(kind, shape, rng))
    return tensors


def fits(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be of this type."""
    info = table.by_name(kind)
    if kind == "I2_S":
        return shape[-1] % 128 == 0 and len(shape) == 2
    return shape[-1] % max(info.block, 1 if info.bytes < 4 else 32) == 0 and shape[-2] % info.interleave == 0


def encoded(kind: str, shape: tuple[int, ...], rng) -> bytes:
    """Weights with random codes and small scales, as a file has them."""
    rows, k = math.prod(shape[:-1]), shape[-1]
    if kind == "I2_S":
        codes = rng.integers(0, 256, rows * k // 4, np.uint8)
        codes &= ~(codes >> 1 & codes & 0x55) & 0xFF  # a weight has three values
        return codes.tobytes() + np.full(8, 0.02, np.float32).tobytes()
    data = synthetic_tensor("w", kind, shape).data.reshape(rows, -1)
    data = np.roll(data, int(rng.integers(rows)), 0)
    return (data if weave.base_of(kind) == kind else weave.weave(kind, np.ascontiguousarray(data))).tobytes()


# ---- vocabularies of as many tokens
PIECES = [*string.ascii_letters, *",.;:!?'-+*/()[]", "Ġ", "th", "<|end|>"]
SPM = ["<unk>", "<s>", "</s>", "▁", *string.ascii_letters, *",.;:!?'-+*", "th", "▁t", "<0x0A>"]


def vocabulary(kind: str) -> dict:
    """Metadata of a vocabulary of N_VOCAB tokens: gpt2, llama, bert or t5."""
    head = {"tokenizer.ggml.model": kind}
    if kind == "gpt2":
        head |= {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.merges": ["t h"]}
        return head | {
            "tokenizer.ggml.tokens": PIECES,
            "tokenizer.ggml.token_type": [1] * (N_VOCAB - 1) + [3],
            "tokenizer.ggml.eos_token_id": N_VOCAB - 1,
            "tokenizer.ggml.bos_token_id": N_VOCAB - 1,
            "tokenizer.chat_template": "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}",
        }
    words = SPM if kind != "bert" else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(p.replace("▁", "##") for p in SPM[3:])]
    return head | {
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (len(words) - 3)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    }


KINDS = "gpt2", "llama", "bert", "t5"
