"""Fuzz of model files: bytes, metadata, the list of tensors, data and vocabularies."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import fuzz_models
import fuzz_mutations as mutations
import gguf_writer
import guards
import tiny_llama
import tiny_moe
from fuzz_case import FEW_OPTIONS, Case, Wrong, any_model, any_text, kind, run, text_too, twice

from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.quants import file_types
from ikpy_llm.text.vocab.pre import PRE
from ikpy_llm.text.vocab.vocab import load_vocab


def load(c: Case, path: Path) -> None:
    """A file that may be anything."""
    text_too(path) if c.often(0.3) else None
    twice(c, path, n_ctx=c.rng.choice((256, 256, None, 0)), **c.rng.choice(FEW_OPTIONS))


@functools.cache
def valid_models() -> tuple:
    """(form, types, options): every architecture, then every type."""
    plain = ("Q8_0", "F16"), ("F32",), ("Q4_0", "BF16")
    found = [(form, types) for form in fuzz_models.FORMS for types in plain]
    found += [("llama wide", (t, "Q6_K")) for t in file_types()]
    return tuple((*model, options) for model in found for options in ({}, {"repack": False}))


@kind
def valid(c: Case) -> None:
    """Models as they should be, which have to run: the seed is the number of one of `valid_models`."""
    form, types, options = valid_models()[c.seed % len(valid_models())]
    path, tokens = c.write(gguf_writer.build(*fuzz_models.model(form, types))), c.tokens(40)
    try:
        first = run(c, path, "", 1, tokens=tokens, **options)
        for side in guards.SIDES:
            if run(c, path, side, 2, tokens=tokens, **options) != first:
                raise Wrong(f"{form} {types}: other bytes on two threads and guard pages ({side})")
    except IkpyError as error:
        raise Wrong(f"{form} {types}: {error}") from None


@kind
def sizes(c: Case) -> None:
    """Rows, columns, heads and experts of any number, which end within vectors, panels, tiles and blocks."""
    rng, types = c.rng, c.rng.choice((("F32",), ("F16", "BF16"), ("Q8_0", "Q4_1"), ("F32", "Q5_0")))
    unit = 32 if types[0] == "Q8_0" else 1
    n_head_kv, n_vocab = rng.choice((1, 2, 3)), rng.randint(2, 100)
    more = {
        "n_embd": unit * rng.randint(1, 160 // unit),
        "n_head": n_head_kv * rng.choice((1, 2, 7)),
        "n_head_kv": n_head_kv,
        "head_dim": rng.choice((8, 20)),
        "n_layer": 1,
    }
    n_ff = unit * rng.randint(1, 160 // unit)
    if c.often(0.3):
        n_expert = rng.randint(1, 9)
        meta = tiny_moe.meta(n_expert=n_expert, n_used=rng.randint(1, n_expert), n_ff_expert=n_ff, **more)
        shapes = tiny_moe.shapes(meta)
    else:
        meta = tiny_llama.meta(n_ff=n_ff, architecture=rng.choice(("llama", "qwen2")), **more)
        shapes = tiny_llama.shapes(meta, bias=c.often(0.5), tied=c.often(0.5))
    for name in ("token_embd.weight", "output.weight"):
        if name in shapes:
            shapes[name] = (n_vocab, more["n_embd"])
    meta = {key: value for key, value in meta.items() if not key.endswith(".vocab_size")}
    path = c.write(gguf_writer.build(meta, fuzz_models.filled(shapes, types, c.seed)))
    tokens = [token % n_vocab for token in c.tokens(rng.choice((2, 5, 40)))]
    twice(c, path, tokens=tokens, repack=c.often(0.5), n_ubatch=rng.choice((1, 3, 512)))


@kind
def header(c: Case) -> None:
    """Bytes of a file."""
    meta, tensors = any_model(c)
    if c.often(0.7):  # fewer keys are hit more often
        meta = {k: v for k, v in meta.items() if not k.startswith("tokenizer.")}
    blob = gguf_writer.build(meta, tensors)
    for _ in range(c.rng.choice((1, 1, 1, 2, 4))):
        blob = mutations.spoil_bytes(c.rng, blob)
    load(c, c.write(blob))


@kind
def metadata(c: Case) -> None:
    """Keys and values."""
    meta, tensors = any_model(c)
    for _ in range(c.rng.choice((1, 1, 2, 3))):
        meta = mutations.spoil_meta(c.rng, meta)
    spoilt = gguf_writer.Spoilt()
    if c.often(0.1):
        key = c.rng.choice(list(meta))
        spoilt.extra_pairs.append((key, meta[key]))
    load(c, c.write(gguf_writer.build(meta, tensors, spoilt)))


@kind
def tensor_list(c: Case) -> None:
    """Names, shapes, types and places of tensors."""
    meta, tensors = any_model(c)
    spoilt = gguf_writer.Spoilt()
    for _ in range(c.rng.choice((1, 1, 2))):
        tensors = mutations.spoil_tensors(c.rng, tensors, spoilt)
    blob = gguf_writer.build(meta, tensors, spoilt)
    load(c, c.write(blob if c.often(0.8) else blob[: -c.rng.randrange(1, 100)]))


@functools.cache
def types_by_width() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Types whose rows fit into 64 columns; those that need 256."""
    narrow = tuple(t for t in file_types() if fuzz_models.fits(t, (64, 64)))
    return narrow, tuple(t for t in file_types() if t not in narrow)


@kind
def tensor_data(c: Case) -> None:
    """Weights: codes out of range, scales that are not finite, of every type, packed or read from the file."""
    narrow, wide = types_by_width()
    form = c.rng.choice(("llama wide", "llama wide", *fuzz_models.FORMS))
    types = tuple(c.rng.sample(wide if form == "llama wide" else narrow, 2))
    meta, tensors = fuzz_models.model(form, types)
    for _ in range(c.rng.choice((0, 1, 1, 2, 5))):
        tensors = mutations.spoil_data(c.rng, tensors)
    options = c.rng.choice(({}, {"repack": False}, {"pp_requant": True}, {"n_ubatch": 1}))
    twice(c, c.write(gguf_writer.build(meta, tensors)), **options)


# Of a block of each type: bytes, where a number lies that has to be finite, and the numbers that are not.
NOT_FINITE = {
    "F32": (4, 0, (b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\1\0\x80\xff")),
    "F16": (2, 0, (b"\0\x7c", b"\0\x7e", b"\1\xfc")),
    "BF16": (2, 0, (b"\x80\x7f", b"\xc0\x7f", b"\x81\xff")),
    "Q8_0": (34, 0, (b"\0\x7c", b"\0\x7e", b"\1\xfc")),
    "Q4_1": (20, 2, (b"\0\x7c", b"\0\x7e", b"\1\xfc")),  # the minimum
}


@kind
def not_finite(c: Case) -> None:
    """One number of one tensor: an error that names it, before a token or where the token has that row."""
    form = c.rng.choice(list(fuzz_models.FORMS))
    meta, tensors = fuzz_models.model(form, c.rng.choice((("F32",), ("F16", "BF16"), ("Q8_0", "Q4_1"))))
    name = c.rng.choice(list(tensors))
    kind_of, shape, raw = tensors[name]
    size, at, numbers = NOT_FINITE[kind_of]
    block, number = c.rng.randrange(len(raw) // size), c.rng.choice(numbers)
    at += block * size
    changed = raw[:at] + number + raw[at + len(number) :]
    path = c.write(gguf_writer.build(meta, tensors | {name: (kind_of, shape, changed)}))
    row = block * size * shape[0] // len(raw)  # of an embedding: the token
    options = {"repack": c.often(0.5), "mla": c.rng.randrange(4), "pp_requant": c.often(0.2)}
    options["n_ctx"] = 512 if "factors_long" in name else 256  # what short contexts leave alone is not looked at
    try:
        run(c, path, c.rng.choice(("", *guards.SIDES)), 2, tokens=(1, row % fuzz_models.N_VOCAB, 2), **options)
    except IkpyError as error:
        if name not in str(error):
            raise Wrong(f"{form}: '{name}' is not named for a number that is not finite: {error}") from None
    else:
        raise Wrong(f"{form}: a number of '{name}' that is not finite gives no error with {options}")


@kind
def tokenizer(c: Case) -> None:
    """Vocabularies of every kind and texts of any characters."""
    name = c.rng.choice(fuzz_models.KINDS)
    meta = {"general.architecture": "llama"} | fuzz_models.vocabulary(name)
    if name == "gpt2" and c.often(0.8):
        meta["tokenizer.ggml.pre"] = c.rng.choice(list(PRE))
    for _ in range(c.rng.choice((0, 1, 1, 2, 3))):
        meta = spoil_vocabulary(c, meta)
    file = open_gguf(c.write(gguf_writer.build(meta, {})))
    vocab = load_vocab(file.meta, file.path)
    file.close()
    for _ in range(4):
        text = any_text(c.rng)
        special = c.often(0.5)
        ids = vocab.encode(text, add_special=c.often(0.5), parse_special=special)
        if any(not 0 <= i < vocab.n_tokens for i in ids):
            raise Wrong(f"ids {ids} of {vocab.n_tokens} tokens")
        vocab.decode(ids, skip_special=special)
        decoder = vocab.decoder(special)
        "".join(decoder.feed(i) for i in ids) + decoder.flush()
    vocab.decode([c.rng.randrange(-1, vocab.n_tokens + 2) for _ in range(3)])


def spoil_vocabulary(c: Case, meta: dict) -> dict:
    keys = [k for k in meta if k.startswith("tokenizer.ggml.")]
    key = c.rng.choice([*keys, *(k for k in mutations.OTHER_KEYS if k.startswith("tokenizer.ggml."))])
    old = meta.get(key)
    if isinstance(old, list) and old and c.often(0.7):
        new, i = list(old), c.rng.randrange(len(old))
        if isinstance(old[0], str):
            odd = (
                any_text(c.rng),
                new[0],
                "",
                "a b c",
                " ",
                "<0xFF>",
                "<0xZZ>",
                b"\xff",
                b"\xc3",
                "x" * 3000,
                "\u2581",
            )
            new[i] = c.rng.choice(odd)
            new = [n if isinstance(n, bytes) else n.encode("utf-8", "replace") for n in new]
            raw = b"".join(map(gguf_writer.string, new))
            value = mutations.U(9, (8).to_bytes(4, "little") + len(new).to_bytes(8, "little") + raw)
            return meta | {key: value}
        new[i] = c.rng.choice(mutations.FLOATS if isinstance(old[0], float) else (0, 1, 2, 3, 4, 5, 6, 7, 1 << 20))
        return meta | {key: new}
    return meta | {key: mutations.odd_value(c.rng, old)}


@functools.cache
def golden_models() -> tuple[Path, ...]:
    """The reference data's models, where there are some."""
    folder = os.environ.get("IKPY_GOLDEN")
    return tuple(sorted((Path(folder) / "models").glob("*.gguf"))) if folder else ()


@kind
def golden(c: Case) -> None:
    """Models that ik_llama.cpp wrote, of a few MB each: bytes of the header, or of blocks anywhere."""
    if not golden_models():
        return
    blob = bytearray(c.rng.choice(golden_models()).read_bytes())
    if c.often(0.5):
        blob = mutations.spoil_bytes(c.rng, bytes(blob))
    else:
        for _ in range(c.rng.choice((0, 1, 10))):
            at = c.rng.randrange(len(blob))
            blob[at : at + 64] = c.rng.randbytes(len(blob[at : at + 64]))
    text_too(path := c.write(bytes(blob)))
    twice(c, path, **c.rng.choice(FEW_OPTIONS[:2]))
