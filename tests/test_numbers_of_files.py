"""Every number of a file's metadata with odd values: logits that are finite, or an error of one line."""

import logging
import math

import gguf_writer
import numpy as np
import pytest
import tiny_deepseek2
import tiny_gemma3
import tiny_llama
import tiny_moe

from ikpy_llm import models
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.graph import rope
from ikpy_llm.engine.graph.params import KEYS
from ikpy_llm.engine.options import Options
from ikpy_llm.engine.step.session import Session
from ikpy_llm.errors import IkpyError, ModelFileError
from ikpy_llm.text.vocab.vocab import load_vocab

WRITERS = {"llama": tiny_llama, "gemma3": tiny_gemma3, "deepseek2": tiny_deepseek2, "qwen3moe": tiny_moe}
OPTIONS = Options(threads=1, n_ctx=256, repack=False)
NUMBERS = [0, -1, 1e-30, math.exp(-10), math.exp(10), 1e15, 1e30, 1e300, 2**31, 2**62, -(2**31), math.nan, math.inf]
OTHERS = [-math.inf, True, "x", [], [1, 2, 3], [0.5, 1e-30], b"\xff"]


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, "ikpy")


def logits(path, change: dict) -> np.ndarray:
    """Of a file whose metadata is changed."""
    file = open_gguf(path)
    file.meta.update(change)
    with Session(file, models.builder(file.meta, str(path)), OPTIONS) as session:
        session.owns_file = True
        return session.eval([1, 2, 3], all_logits=True)


def check(path, change: dict) -> None:
    try:
        assert np.isfinite(logits(path, change)).all(), change
    except IkpyError as error:
        assert "\n" not in str(error), change


@pytest.mark.parametrize("name", WRITERS)
def test_each_number(folder, name):
    path = WRITERS[name].write(folder / f"{name}.gguf")
    keys = [f"{name}.{key.key}" for key in KEYS.values() if key.type in (float, int) and key.key != "context_length"]
    for key in keys:
        for value in NUMBERS:
            check(path, {key: value})
    for key in keys[::3]:
        for value in OTHERS:
            check(path, {key: value})


@pytest.mark.parametrize("name", ["llama", "deepseek2"])
def test_each_number_of_yarn(folder, name):
    path = WRITERS[name].write(folder / f"{name}.gguf")
    yarn = {f"{name}.rope.scaling.type": "yarn", f"{name}.rope.scaling.factor": 4.0}
    for key in (f"{name}.{key.key}" for key in KEYS.values() if "rope" in key.key and key.type is not str):
        for value in NUMBERS:
            check(path, yarn | {key: value})
            check(path, yarn | {f"{name}.rope.scaling.attn_factor": 1.2, key: value})


def test_yarn_whose_growth_would_be_zero(folder):
    """1 + 0.1 ln(e^-10) = 0: factors below 1 do not grow."""
    assert rope.growth(math.exp(-10)) == rope.growth(1e-5) == 1
    path = tiny_llama.write(folder / "llama.gguf")
    shared = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": math.exp(-10)}
    found = [logits(path, shared | more) for more in ({}, {"llama.rope.scaling.attn_factor": 1.0})]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("shape", [(2 * 96 * 64,), (64,), (1,), (1, 2 * 96 * 64), (2 * 96, 64, 1)])
def test_ffn_up_of_other_dimensions_without_ffn_gate(folder, shape):
    meta = tiny_llama.meta()
    tensors = tiny_llama.tensors(meta)
    for i in range(2):
        del tensors[f"blk.{i}.ffn_gate.weight"]
        tensors[f"blk.{i}.ffn_up.weight"] = "F32", shape, bytes(4 * math.prod(shape))
    path = gguf_writer.write(folder / "up.gguf", meta, tensors)
    with pytest.raises(ModelFileError, match="ffn_"):
        logits(path, {})


def test_tensors_of_other_dimensions(folder):
    meta = tiny_llama.meta()
    tensors = tiny_llama.tensors(meta)
    for name, (kind, shape, data) in tensors.items():
        for other in ((math.prod(shape),), (1, *shape), (*shape, 1), shape[::-1], (1, 1, 1, 4), (0,)):
            changed = tensors | {name: (kind, other, data[: 4 * math.prod(other)])}
            check(gguf_writer.write(folder / "other.gguf", meta, changed), {})


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5"])
def test_types_and_scores_of_tokens(folder, kind):
    n, texts = 40, ["<unk>", *(chr(65 + i) for i in range(39))]
    base = {"general.architecture": "llama", "tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": texts}
    base |= {"tokenizer.ggml.merges": ["A B"], "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.pre": "smollm"}
    base |= {"tokenizer.ggml.token_type": [2] + [1] * (n - 1), "tokenizer.ggml.scores": [-float(i) for i in range(n)]}
    read = 0
    for key, values in (
        ("token_type", ([-1] * n, [0] * n, [3] * n, [7] * n, [2**31 - 1] * n, [1.5] * n, ["x"] * n, [], [1], 5, "x")),
        ("scores", ([0.0] * n, [math.nan] * n, [-math.inf] * n, [1e30] * n, [1] * n, ["x"] * n, [], [1.0], 5, "x")),
        ("tokens", ([""] * n, ["A"] * n, [b"\xff"] * n, ["<0xZZ>"] * n, [1] * n, [], "x")),
        ("merges", ([""], ["A"], ["A B C"], [b"\xff \xff"], [1], 5, ["Q Q"] * 3)),
        ("unknown_token_id", (-1, 40, 2**31, 1.5, "x", [0])),
    ):
        for value in values:
            path = gguf_writer.write(folder / "vocab.gguf", base | {f"tokenizer.ggml.{key}": value}, {})
            try:
                vocab = load_vocab(open_gguf(path).meta, path)
                vocab.decode(vocab.encode("AB CABé\n<unk>", parse_special=True), skip_special=False)
                read += 1
            except IkpyError as error:
                assert "\n" not in str(error), (key, value)
    assert read > 5
