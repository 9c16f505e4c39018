"""A case of the fuzz: its random numbers and folder, how a model is run for it, and what must not come of it.

A case is fine where it returns, or where an IkpyError says in one line what is wrong. `Wrong` is a result that nobody
may see: values that are not finite, other bytes with another number of threads or on guard pages.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import fuzz_models
import gguf_writer
import guards
import numpy as np

from ikpy_llm import Model
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.text.vocab.vocab import load_vocab


class Wrong(Exception):
    """A result that must not be."""


@dataclass
class Case:
    """One case: its random numbers and an empty folder of its own."""

    kind: str
    seed: int
    folder: Path

    def __post_init__(self):
        self.rng = random.Random(f"{self.kind}:{self.seed}")
        self.np = np.random.default_rng(self.rng.randrange(1 << 32))

    def often(self, chance: float) -> bool:
        return self.rng.random() < chance

    def write(self, data: bytes, name: str = "m.gguf") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def tokens(self, n: int) -> list[int]:
        return [self.rng.randrange(fuzz_models.N_VOCAB) for _ in range(n)]


CASES = {}


def kind(function):
    """Decorator: the function is a kind of case, with its own name."""
    CASES[function.__name__] = function
    return function


def finite(x: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(x).all():
        raise Wrong(f"{what}: values that are not finite")
    return x


def one_line(error: Exception) -> None:
    """Wrong unless the message is one line that says something, in characters that a terminal shows."""
    text = str(error)
    if not text.strip() or not text.isprintable() or len(text) > 4000:
        raise Wrong(f"message of {type(error).__name__}: {text[:300]!r}")


CHARACTERS = (
    "a",
    "th",
    " ",
    "\n",
    "\t",
    "\r\n",
    "  ",
    "é",
    "ß",
    "\u0301",
    "\u200d",
    "\U0001f469",
    "中",
    "١",
    "½",
    "\x00",
)
CHARACTERS += (
    "\ud800",
    "\ufeff",
    "\uffff",
    "\U0010ffff",
    "'s",
    "<|end|>",
    "<s>",
    "1234567",
    "\u2581",
    "Ġ",
    "\xa0",
    "ﷺ",
    "İ",
)


def any_text(rng) -> str:
    if rng.random() < 0.02:
        return rng.choice(CHARACTERS) * rng.choice((300, 3000))
    return "".join(rng.choice(CHARACTERS) for _ in range(rng.randrange(20)))


# ---- model files
PLAIN_TYPES = (("F32",), ("Q8_0",), ("Q4_0", "F16"), ("BF16", "Q5_1"), ("Q8_0_R8", "IQ4_NL_R4", "Q6_0"), ("IQ4_NL",))
# Options that a valid model of any architecture takes; what others add to these is in `options`.
FEW_OPTIONS = ({}, {"repack": False}, {"n_ubatch": 3}, {"cache_type_k": "q8_0", "cache_type_v": "q4_0"})


def any_model(c: Case, types=None) -> tuple[dict, dict]:
    """(metadata, tensors) of a valid model with a vocabulary."""
    form = c.rng.choice(list(fuzz_models.FORMS))
    meta, tensors = fuzz_models.model(form, types or c.rng.choice(PLAIN_TYPES))
    return meta | fuzz_models.vocabulary(c.rng.choice(fuzz_models.KINDS)), dict(tensors)


def run(c: Case, path: Path, side: str = "", threads: int = 1, n_ctx: int | None = 256, tokens=(1, 2, 69), **options):
    """Load a model, look at all it offers; the logits as bytes."""
    with guards.on(side), Model.load(path, n_ctx=n_ctx, threads=threads, **options) as model:
        tokens = [t % model.n_vocab for t in tokens]
        out = [finite(model.logits(tokens), "logits")]
        model.session.rewind(0)
        out += [
            finite(model.session.eval(tokens[:-1] or tokens), "a prompt"),
            finite(model.session.eval([0]), "a token"),
        ]
        return b"".join(x.tobytes() for x in out)


def text_too(path: Path) -> None:
    """The vocabulary, where there is one that can be used."""
    file = open_gguf(path)
    try:
        vocab = load_vocab(file.meta, path)
        ids = vocab.encode("the \u00e9\U0001f600 x\n", parse_special=True)
        if any(not 0 <= i < vocab.n_tokens for i in ids):
            raise Wrong(f"ids {ids} of {vocab.n_tokens} tokens")
        vocab.decode(ids)
    finally:
        file.close()


def twice(c: Case, path: Path, **options) -> None:
    """The same bytes from one thread and from two on guard pages."""
    first = run(c, path, "", 1, **options)
    for side in c.rng.sample(guards.SIDES, 1):
        if run(c, path, side, 2, **options) != first:
            raise Wrong(f"other bytes on two threads and guard pages ({side})")


@functools.cache
def small_model(folder: Path) -> Model:
    """A model that many cases share."""
    meta, tensors = fuzz_models.model("llama", ("Q8_0",))
    path = folder / "shared.gguf"
    path.write_bytes(gguf_writer.build(meta | fuzz_models.vocabulary("gpt2"), tensors))
    with guards.on(""):  # whatever the first case that asks for it does
        return Model.load(path, n_ctx=256, threads=1)


def shared(c: Case) -> Model:
    return small_model(c.folder.parent)


def model_of(c: Case, **options) -> Model:
    shared(c)
    return Model.load(c.folder.parent / "shared.gguf", **options)
