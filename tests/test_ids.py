"""Vocabularies that lack something, special tokens or all of them: in Python and on the command line."""

import logging

import numpy as np
import pytest
import tiny_llama
import tiny_model
from gguf_writer import U, write

from ikpy_llm import Model
from ikpy_llm.errors import IkpyError

NONE = 2**32 - 1  # what converters write for -1
IDS = [3, 1, 4, 1, 5]


def loaded(path):
    return Model.load(path, threads=1, n_ctx=256)


def text_of(pieces):
    """(the text, the generator's own value)"""
    out = []
    while True:
        try:
            out.append(next(pieces))
        except StopIteration as end:
            return "".join(out), end.value


KINDS = "bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "cls", "mask", "fim_pre", "prefix"


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_outside_count_as_not_stated(folder, caplog, kind):
    key = f"tokenizer.ggml.{kind}_token_id"
    with loaded(tiny_model.write(folder / "without.gguf", {key: None})) as model:
        expected = text_of(model.generate("the end", n_predict=6, temp=0.0))
        special = model.vocab.bos, model.vocab.eos, model.vocab.eot, model.vocab.unknown, model.vocab.eog
    for value in (NONE, tiny_llama.N_VOCAB, U(5, -1)):
        caplog.clear()
        with loaded(tiny_model.write(folder / "outside.gguf", {key: value})) as model:
            (said,) = [r.message for r in caplog.records if r.levelno >= logging.WARNING]  # at load
            assert f"{key} = " in said and "count as not stated" in said
            assert text_of(model.generate("the end", n_predict=6, temp=0.0)) == expected
            v = model.vocab
            assert (v.bos, v.eos, v.eot, v.unknown, v.eog) == special


def test_special_ids_outside_on_the_command_line(ikpy, tmp_path):
    change = {"tokenizer.ggml.eos_token_id": NONE, "tokenizer.ggml.unknown_token_id": NONE}
    path = tiny_model.write(tmp_path / "m.gguf", change | {"tokenizer.ggml.eot_token_id": 99999})
    done = ikpy("run", "-m", path, "-p", "the end", "-n", "3", "--temp", "0", "-t", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("eos_token_id = 4294967295") == 1 and "eot_token_id = 99999" in done.stderr


NO_TOKENS = {
    "no_vocab": {"tokenizer.ggml.model": "no_vocab"},
    "none": {"tokenizer.ggml.model": "none", "tokenizer.ggml.eos_token_id": 2},
    "not even a name": {},
    "gpt2 without tokens": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": []},
}


def without_tokens(path, case):
    m = tiny_llama.meta()
    return write(path, m | NO_TOKENS[case], tiny_llama.tensors(m, ("Q8_0",), seed=1, tied=True))


@pytest.mark.parametrize("case", NO_TOKENS)
def test_a_file_without_tokens_goes_on_from_ids(folder, caplog, case):
    with loaded(tiny_model.write(folder / "with.gguf", {"tokenizer.ggml.eos_token_id": None})) as model:
        expected = []
        logits = model.session.eval(IDS)[0]
        for _ in range(6):
            expected.append(int(np.argmax(logits)))
            logits = model.session.eval(expected[-1:])[0]
    with loaded(without_tokens(folder / "m.gguf", case)) as model:
        assert text_of(model.generate(IDS, n_predict=6, temp=0.0))[1].ids == expected
        text, end = text_of(model.generate(IDS, n_predict=40, seed=1))
        assert (text, len(end.ids), end.why) == ("", 40, "length")
        assert len(set(end.ids)) > 1 and max(end.ids) < tiny_llama.N_VOCAB
        assert model.embed(IDS).shape == (64,)
        for call in (
            lambda: model.generate("text"),
            lambda: model.tokenize("text"),
            lambda: model.detokenize(IDS),
            lambda: model.generate(IDS, stop="x"),
            lambda: model.perplexity("text"),
            lambda: text_of(model.chat([{"role": "user", "content": "x"}], template="chatml")),
        ):
            with pytest.raises(IkpyError, match=r"the file has no tokens \(tokenizer.ggml.tokens\)"):
                call()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_file_without_tokens_on_the_command_line(ikpy, tmp_path):
    path = without_tokens(tmp_path / "m.gguf", "no_vocab")
    for words in (["-p", "text"], ["-cnv", "-p", "text", "-st", "--chat-template", "chatml"], ["-sys", "x", "-st"]):
        done = ikpy("run", "-m", path, "-n", "3", "-t", "1", *words, input="text\n")
        assert done.returncode == 1 and done.stdout == "", done.stdout
        assert "the file has no tokens" in done.stderr or "chat template" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    done = ikpy("bench", "-m", path, "-p", "4", "-n", "2", "-r", "1", "-t", "1")
    assert done.returncode == 0 and "tg2" in done.stdout, done.stderr
