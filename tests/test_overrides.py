"""Metadata stated in place of the file's: the logits of a file that says so, and one line for what is wrong."""

import numpy as np
import pytest
import tiny_llama

from ikpy_llm import Model
from ikpy_llm.cli import overrides
from ikpy_llm.cli.commands import run
from ikpy_llm.cli.options import parse
from ikpy_llm.errors import IkpyError, ModelFileError

TOKENS = list(range(60))


def of(*words):
    return overrides.of(parse(run.Options, words, "ikpy-run", environ={}))


@pytest.fixture(scope="module")
def path(folder):
    return tiny_llama.write(folder / "model.gguf")


def logits(path, **options):
    with Model.load(path, threads=1, n_ctx=256, **options) as model:
        return model.logits(TOKENS)


YARN = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64}
CASES = {
    "--rope-scale 4": {"rope__scaling__factor": 4.0},
    "--rope-freq-scale 0.25 --rope-scaling linear": {"rope__scaling__factor": 4.0},
    "--rope-freq-base 5e4": {"rope__freq_base": 5e4},
    "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 64 --yarn-ext-factor -1": YARN,
    "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 64 --yarn-ext-factor 0.5 --yarn-attn-factor 1.5 "
    "--yarn-beta-slow 2 --yarn-beta-fast 16": YARN
    | {"rope__scaling__yarn_ext_factor": 0.5, "rope__scaling__yarn_attn_factor": 1.5}
    | {"rope__scaling__yarn_beta_slow": 2.0, "rope__scaling__yarn_beta_fast": 16.0},
    "--override-kv llama.rope.freq_base=float:5e4": {"rope__freq_base": 5e4},
    "--override-kv rope.freq_base=float:5e4 --override-kv general.name=str:x,y": {"rope__freq_base": 5e4},
}


@pytest.mark.parametrize("words", CASES)
def test_as_if_the_file_said_so(folder, path, words):
    expected = logits(tiny_llama.write(folder / "said.gguf", **CASES[words]))
    np.testing.assert_array_equal(logits(path, override_kv=of(*words.split())), expected)
    assert not np.array_equal(logits(path), expected)


def test_types_of_override_kv():
    found = of(*"--override-kv a.b=int:3 --override-kv c=bool:True --override-kv d=str:x=y:z,1".split())
    assert found == {"a.b": 3, "c": True, "d": "x=y:z,1"} and of() == {}


@pytest.mark.parametrize("text", ["a", "a=3", "a=int", "a=int:x", "a=word:3", "=int:3", "a=bool:1"])
def test_what_is_no_override(text):
    with pytest.raises(IkpyError, match="is not KEY=TYPE:VALUE"):
        of("--override-kv", text)


def test_errors(path):
    with pytest.raises(IkpyError, match="exclude each other"):
        of("--rope-scale", "2", "--rope-freq-scale", "0.5")
    for changes, message in (
        ({"rope.scaling.type": "odd"}, "'llama.rope.scaling.type' is 'odd'; accepted: none, linear, yarn"),
        ({"block_count": 3}, "tensor 'blk.2.attn_norm.weight' of shape .* is missing"),
        ({"general.architecture": "x"}, "general.architecture is 'x'; there are: "),
        ({"something": 1}, "there is no metadata key .llama.something. that could be overridden"),
    ):
        with pytest.raises(ModelFileError, match=message):
            logits(path, override_kv=changes)
    for changes in ({3: 1}, {"": 1}, {"a": None}, {"a": [1]}, 5, ["a"]):
        with pytest.raises(IkpyError, match=r"override_kv(:| is) "):
            logits(path, override_kv=changes)
