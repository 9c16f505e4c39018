"""Mutations of GGUF files: of bytes, metadata, the list of tensors, and data. `rng` is a random.Random everywhere."""

from __future__ import annotations

import struct

import numpy as np
from gguf_writer import Spoilt, U, build, string

from ikpy_llm.engine.file import known_keys
from ikpy_llm.engine.file.header import NUMBERS
from ikpy_llm.engine.graph import params
from ikpy_llm.kernels.quants import table

SIZES = {code: np.dtype(form).itemsize for code, form in NUMBERS.items()}
WHOLE = (0, 1, 2, 3, 7, 8, 31, 32, 33, 255, 256, 1 << 15, 1 << 16, (1 << 24) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
HUGE = (1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 32)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e38, 3.4e38, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "x",
    "yarn",
    "longrope",
    "linear",
    "none",
    "gelu",
    "silu",
    "a\nb",
    "\x00",
    "é" * 50,
    "x" * 1000,
    b"\xff\xfe",
)
OTHER_KEYS = (
    "general.architecture", "general.type", "general.name", "general.file_type", "general.alignment",
    "general.quantization_version", "general.tags", "split.count", "split.no", "split.tensors.count",
    "tokenizer.chat_template", "tokenizer.chat_template.tool_use", "general.sampling.temp", "general.sampling.top_k",
    "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.suppress_tokens", "tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.eom_token_id", "tokenizer.ggml.cls_token_id",
)  # fmt: skip


# ---- bytes of a header
def fields(blob: bytes) -> list[tuple[int, int]]:
    """(offset, bytes) of every number of a well-formed header: counts, lengths, types, values, sizes, offsets."""
    out, at = [], 4

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(blob) or len(out) > 10_000:
            raise ValueError("no longer well formed")
        out.append((at, size))
        at += size
        return int.from_bytes(blob[at - size : at], "little")

    def text() -> None:
        nonlocal at
        n = number(8)  # which moves `at`
        at += n

    def value(code: int) -> None:
        if code == 8:
            text()
        elif code == 9:
            kind, n = number(4), number(8)
            for _ in range(n):
                value(kind)
        else:
            number(SIZES[code])

    number(4)
    n_tensors, n_pairs = number(8), number(8)
    for _ in range(n_pairs):
        text()
        value(number(4))
    for _ in range(n_tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return [*out, (at, 0)]


def spoil_bytes(rng, blob: bytes) -> bytes:
    """One mutation of a file that was well formed, or is not any more."""
    try:
        places = fields(blob)
    except (KeyError, RecursionError, ValueError):
        places = [(4, 4), (8, 8), (16, 8), (min(len(blob), 100), 0)]
    end, out = places[-1][0], bytearray(blob)
    what = rng.randrange(9)
    if what <= 2 and len(places) > 1:  # a number
        at, size = rng.choice(places[:-1])
        old = int.from_bytes(out[at : at + size], "little")
        new = rng.choice((*WHOLE, *HUGE, old + 1, old - 1, old * 2, old ^ (1 << rng.randrange(8 * size)), len(blob)))
        out[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
    elif what == 3:
        for _ in range(rng.randint(1, 4)):
            if out:
                out[rng.randrange(min(max(end, 1), len(out)))] ^= 1 << rng.randrange(8)
    elif what == 4:
        del out[rng.choice((rng.choice(places)[0], rng.randrange(len(out) + 1))) :]
    elif what == 5:
        at = rng.choice(places)[0]
        del out[at : at + rng.choice((1, 4, 8, rng.randrange(64)))]
    elif what == 6:
        at = rng.choice(places)[0]
        out[at:at] = rng.randbytes(rng.choice((1, 4, 8, 100)))
    elif what == 7:
        a, b = rng.choice(places)[0], rng.choice(places)[0]
        out[a : a + 40] = out[b : b + 40]
    else:
        out += bytes(rng.choice((1, 31, 4096)))
    return bytes(out)


# ---- metadata
def odd_value(rng, old=None):
    """A value that a key may not expect; often near the old one, or of another type."""
    near = []
    if isinstance(old, bool):
        near = [not old, int(old)]
    elif isinstance(old, int):
        near = [old + 1, old - 1, old * 2, old // 2, float(old), str(old), [old, old], [old] * 7, -old]
    elif isinstance(old, float):
        near = [old * 2, -old, old / 1e6, old * 1e6, round(old) if abs(old) < 1e9 else 7, str(old)]
    elif isinstance(old, str):
        near = [old + "x", old.upper(), old[:-1], old.encode()]
    elif isinstance(old, list) and old:
        near = [old[:-1], old + old[:1], old * 2, [old[0]] * len(old), list(reversed(old)), old[:1], old[0]]
    many = [
        list(range(5)),
        [1.5, float("nan")],
        ["a", "b"],
        [True, False],
        [],
        U(9, struct.pack("<IQ", 9, 1) + bytes(12)),
    ]
    codes = [
        U(c, v) for c, v in ((0, 255), (1, -1), (2, 1), (3, -3), (10, 1 << 40), (10, (1 << 64) - 1), (11, -(1 << 63)))
    ]
    codes += [U(12, rng.choice(FLOATS)), U(12, 1e200)]
    pool = rng.choice((near or WHOLE, WHOLE, FLOATS, TEXTS, many, codes, (True, False), (-1, -(1 << 31))))
    found = rng.choice(list(pool))
    if isinstance(found, int) and not isinstance(found, bool) and not -(1 << 63) <= found < 1 << 32:
        return U(10, found % (1 << 64))
    if isinstance(found, float) and abs(found) > 3.4e38 and found - found == 0:
        return U(12, found)
    return found


def spoil_meta(rng, meta: dict) -> dict:
    """A copy with one key changed, added or left out."""
    meta, prefix = dict(meta), str(meta.get("general.architecture", "llama")) + "."
    known = [prefix + k.key for k in params.KEYS.values()]
    key = rng.choice((rng.choice(list(meta)), rng.choice(known), rng.choice(OTHER_KEYS)))
    if rng.random() < 0.15:
        key = prefix + rng.choice([*known_keys.NEUTRAL, *known_keys.HARMLESS, *known_keys.OF_EXPERTS])
    if key in meta and rng.random() < 0.15:
        del meta[key]
    else:
        meta[key] = odd_value(rng, meta.get(key))
    return meta


# ---- the list of tensors
def spoil_tensors(rng, tensors: dict, spoilt: Spoilt) -> dict:
    """A copy with one tensor changed, added or left out; what no writer would write goes to `spoilt`."""
    tensors, name = dict(tensors), rng.choice(list(tensors))
    kind, shape, raw = tensors[name]
    dims = list(shape[::-1])
    what = rng.randrange(10)
    if what == 0:
        i = rng.randrange(len(dims))
        dims[i] = rng.choice((dims[i] + 1, dims[i] - 1, dims[i] * 2, dims[i] // 2, *WHOLE, *HUGE))
        spoilt.dims[name] = tuple(n % (1 << 64) for n in dims)
    elif what == 1:
        spoilt.dims[name] = rng.choice((tuple(dims[::-1]), (*dims, 1), (*dims, 2), (1, *dims), dims[:1], ()))
        if rng.random() < 0.3:
            spoilt.n_dims[name] = rng.choice((0, 1, 2, 3, 4, 5, 8, (1 << 32) - 1))
    elif what == 2:
        spoilt.types[name] = rng.choice((rng.choice(list(table.BY_ID)), rng.randrange(500), (1 << 32) - 1))
    elif what == 3:
        spoilt.offsets[name] = rng.choice((*WHOLE, *HUGE, 32 * rng.randrange(2000), 4 * rng.randrange(9999)))
    elif what == 4:
        del tensors[name]
    elif what == 5:
        odd = rng.choice(
            (name + "x", name[:-1], name.replace("0", "9"), name.upper(), "", "blk.0", "é" * 40, "x" * 300)
        )
        tensors = {odd if n == name else n: t for n, t in tensors.items()}
    elif what == 6:
        kind = rng.choice([t for t in table.BY_NAME if not t.endswith("_R1")])
        try:
            tensors[name] = (kind, shape, rng.randbytes(table.tensor_bytes(kind, shape)))
        except ValueError:
            tensors[name] = (kind, shape, raw)
    elif what == 7:
        stem = rng.choice(("bias", "scale", "input_scale", "weight"))
        new = (
            f"{rng.choice((name.rpartition('.')[0], 'blk.0.attn_q', 'rope_freqs', 'output', 'blk.7.attn_norm'))}.{stem}"
        )
        shape = rng.choice((shape[:1], shape[-1:], (1,), (0,), shape))
        tensors[new] = ("F32", shape, rng.randbytes(4 * int(np.prod(shape))))
    elif what == 8:
        spoilt.extra_tensors.append((name, tensors[name]))
    else:
        tensors[name] = (kind, shape, raw[: rng.randrange(len(raw) + 1)])
    return tensors


# ---- data
SCALES = (0x7C00, 0x7E00, 0xFC00, 0x0001, 0x8000, 0x7BFF, 0x0400)  # f16: infinity, NaN, the smallest, -0, the largest
WORDS = (0x7F800000, 0x7FC00000, 0xFF800000, 1, 0x80000000, 0x7F7FFFFF, 0x00800000, 0xFFFFFFFF)


def spoil_data(rng, tensors: dict) -> dict:
    """A copy with the bytes of one tensor changed."""
    tensors, name = dict(tensors), rng.choice(list(tensors))
    kind, shape, raw = tensors[name]
    out = bytearray(raw)
    block = table.by_name(kind).bytes
    what = rng.randrange(5)
    if what == 0:
        out[:] = rng.randbytes(len(out))
    elif what == 1:
        out[:] = bytes([rng.choice((0, 255, 0x7F, 0x80))]) * len(out)
    elif what == 2:  # some blocks
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(max(1, len(out) // block)) * block
            out[at : at + block] = rng.randbytes(len(out[at : at + block]))
    else:  # a number at the beginning, or the end, of a block
        at = rng.randrange(max(1, len(out) // block)) * block
        at = min(at + rng.choice((0, 0, 2, max(0, block - 2))), len(out) - 4)
        word = rng.choice(WORDS).to_bytes(4, "little") if what == 3 else rng.choice(SCALES).to_bytes(2, "little")
        out[max(0, at) : max(0, at) + len(word)] = word
    tensors[name] = (kind, shape, bytes(out[: len(raw)]))
    return tensors


__all__ = ["Spoilt", "build", "odd_value", "spoil_bytes", "spoil_data", "spoil_meta", "spoil_tensors", "string"]
