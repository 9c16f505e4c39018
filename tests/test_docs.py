"""The documentation is true: its Python snippets run, and its tables list what the code has, with its defaults."""

import ast
import importlib
import inspect
import logging
import lzma
import re
import shlex
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import gguf_writer
import numpy as np
import pytest
import tiny_llama
from gguf import GGMLQuantizationType, quantize

import ikpy_llm
from ikpy_llm.cli.options import parse
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.file.header import StringArray
from ikpy_llm.engine.measure.perplexity import Perplexity
from ikpy_llm.engine.step.conversation import End
from ikpy_llm.sampling.options import SamplerOptions
from ikpy_llm.text.chat.templates import TEMPLATES

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTRA = re.compile("json_schema|grammar")  # snippets with these need llguidance


def snippets(name: str, text: str):
    """(where, code) of every ```python block; its lines have the numbers they have in the document."""
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: found.start(1)].count("\n")
        yield f"{name}:{line + 1}", "\n" * line + found[1]


@pytest.fixture
def model_file(tmp_path):
    """A tiny llama of noise with a real vocabulary and a chat template."""
    packed = Path(__file__).parent / "data" / "vocab_smollm2.gguf.xz"
    (tmp_path / "vocab.gguf").write_bytes(lzma.decompress(packed.read_bytes()))
    vocabulary = open_gguf(tmp_path / "vocab.gguf").meta
    tokens = {k: list(v) if isinstance(v, StringArray) else v for k, v in vocabulary.items() if "tokenizer." in k}
    n_vocab = len(tokens["tokenizer.ggml.tokens"])
    meta = tiny_llama.meta(vocab_size=n_vocab)
    tensors = tiny_llama.tensors(meta, ("Q8_0",), seed=1, tied=True)
    rows = np.random.default_rng(2).normal(0, 0.125, (n_vocab, 64)).astype(np.float32)
    tensors["token_embd.weight"] = "Q8_0", rows.shape, quantize(rows, GGMLQuantizationType.Q8_0).tobytes()
    meta |= tokens | {"tokenizer.chat_template": TEMPLATES["chatml"]}
    return gguf_writer.write(tmp_path / "tiny.gguf", meta, tensors)


def test_snippets_run(model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, level = {}, logging.getLogger("ikpy").level
    blocks = [*snippets("docs/api.md", API), *snippets("README.md", README)]
    assert len(blocks) > 12
    try:
        for where, code in blocks:
            if EXTRA.search(code) and find_spec("llguidance") is None:
                continue
            code = code.replace("model.gguf", model_file.name)
            exec(compile(code, where, "exec"), names)  # a failure's traceback has the line in the document
    finally:
        logging.getLogger("ikpy").setLevel(level)
        names["model"].close()
    assert names["logits"].dtype == np.float32 and names["logits"].shape == (len(names["tokens"]), 49152)
    assert names["w"].shape == names["weights"].shape == (96, 64) and names["y"].shape[1] == 96
    assert names.get("choice", "yes") in ("yes", "no")


COMMANDS = re.findall(r"(?:^|bin/)(ikpy[- ].*)", "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)), re.M)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line):
    """Every command of the README, up to what it would compute."""
    program, *words = shlex.split(line, comments=True)
    name = program.removeprefix("ikpy-") if "-" in program else words.pop(0)
    command = importlib.import_module(f"ikpy_llm.cli.commands.{name.replace('-', '_')}")
    options = parse(command.Options, words, "ikpy", environ={})
    assert options != command.Options() or words == []
    assert not options.notices
    if name == "kernels":
        assert command.kernel_of(options)[0].name == "derive.gemm"


def section(title: str) -> str:
    """The text below a heading of docs/api.md, up to the next one."""
    return re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", API, re.MULTILINE | re.DOTALL)[1]


def rows(title: str) -> dict[str, str]:
    """Names in the first column of a section's tables -> second column."""
    found = re.findall(r"^\| (`[^|]*)\|([^|]*)\|", section(title), re.MULTILINE)
    return {name: second.strip(" `") for names, second in found for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize("name", ["load", "generate", "chat", "perplexity", "embed"])
def test_options_of_a_call(name):
    listed, parameters = rows(f"Model.{name}"), dict(inspect.signature(getattr(ikpy_llm.Model, name)).parameters)
    if "temp" in parameters:  # the options of samplers are in a table of their own
        for f in fields(SamplerOptions):
            assert parameters.pop(f.name).default == f.default
    assert {*listed, "self", "sampling"} == {*parameters, "self", "sampling"}
    stated = {k: ast.literal_eval(text) for k, text in listed.items() if text}
    assert stated == {k: parameters[k].default for k in stated}


def test_sampler_options():
    defaults = {f.name: f.default for f in fields(SamplerOptions)}
    assert {name: ast.literal_eval(text) for name, text in rows("Samplers").items()} == defaults


def test_every_public_name_is_there():
    assert set(rows("Timings fields")) == {f.name for f in fields(ikpy_llm.Timings)}
    names = {name for name in vars(ikpy_llm.Model) if not name.startswith("_")}
    names |= set(ikpy_llm.__all__) - {"__version__"} | {f.name for kind in (End, Perplexity) for f in fields(kind)}
    assert not {name for name in names if not re.search(rf"\b{name}\b", API)}
