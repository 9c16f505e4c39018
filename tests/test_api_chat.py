"""The Python API beyond plain generation: chat, stop strings, sampler options, grammar, perplexity."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import gguf_writer
import numpy as np
import pytest
import tiny_llama

from ikpy_llm import IkpyError, Model
from ikpy_llm.engine.measure import perplexity

LETTERS = [chr(33 + i) for i in range(tiny_llama.N_VOCAB - 3)]
END = tiny_llama.N_VOCAB - 2
TEMPLATE = "{% for m in messages %}<|u|>{{ m.content }}<|e|>{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
CHAT = [{"role": "user", "content": "AB"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model whose token i is chr(33 + i), with three special tokens and a chat template."""
    m = tiny_llama.meta() | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*LETTERS, "<|u|>", "<|e|>", "<|a|>"],
        "tokenizer.ggml.token_type": [1] * len(LETTERS) + [3, 3, 3],
        "tokenizer.ggml.merges": ["A B"],
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.chat_template": TEMPLATE,
        "general.sampling.top_k": 7,
    }
    m["tokenizer.ggml.tokens"][0] = "AB"
    return gguf_writer.write(tmp_path_factory.mktemp("chat") / "m.gguf", m, tiny_llama.tensors(m, ("Q8_0",)))


@pytest.fixture
def model(path):
    with Model.load(path, n_ctx=256, threads=2) as model:
        yield model


def evaluated(model, monkeypatch):
    """The token lists that the engine gets from now on."""
    calls, real = [], model._session.eval
    monkeypatch.setattr(model._session, "eval", lambda t, **kw: (calls.append(list(t)), real(t, **kw))[1])
    return calls


def test_chat_evaluates_only_what_is_new(model, monkeypatch):
    calls = evaluated(model, monkeypatch)
    answer = "".join(model.chat(CHAT, n_predict=5, temp=0))
    assert calls[0] == model.tokenize("<|u|>AB<|e|><|a|>", parse_special=True)
    calls.clear()
    more = [*CHAT, {"role": "assistant", "content": answer}, {"role": "user", "content": "C"}]
    again = "".join(model.chat(more, n_predict=5, temp=0))
    # template: the assistant's message is written with <|u|> where its answer began with <|a|>
    assert calls[0][:1] == model.tokenize("<|u|>", parse_special=True) and len(calls[0]) < 14
    fresh = "".join(model.generate(model.conversation(more).tokens()[1], n_predict=5, temp=0))
    assert fresh == again
    assert more[-1] == {"role": "user", "content": "C"} and len(more) == 3  # the caller's list is left alone


def test_generate_reuses_a_common_beginning(model, monkeypatch):
    first = "".join(model.generate("ABCDEF", n_predict=4, temp=0))
    calls = evaluated(model, monkeypatch)
    assert "".join(model.generate("ABCDEF", n_predict=4, temp=0)) == first
    assert len(calls[0]) == 1
    calls.clear()
    model.session.rewind(0)  # whoever takes the session may leave anything in it
    assert "".join(model.generate("ABCDEF", n_predict=4, temp=0)) == first
    assert len(calls[0]) == 5


def test_stop_strings_and_tokens(model):
    text = "".join(model.generate("ABCD", n_predict=12, temp=0, ignore_eos=True))
    assert len(text) >= 10
    for stop in (text[3:5], [text[3:5], "nothing"]):
        assert (
            "".join(model.generate("ABCD", n_predict=12, temp=0, stop=stop, ignore_eos=True))
            == text[: text.find(text[3:5])]
        )
    ends, texts = model.ends(["<|u|>", "X"])
    assert END - 1 in ends and END in ends and texts == ["X"]
    for wrong in ([3], 5, b"x", ["x", None]):
        with pytest.raises(IkpyError, match=r"stop is .* a text or several"):
            model.generate("AB", stop=wrong)
        with pytest.raises(IkpyError, match="stop is"):
            model.chat(CHAT, stop=wrong)


def test_how_long_a_text_may_be(model):
    for text in (model.generate("AB", n_predict=-2, seed=1), model.chat(CHAT, n_predict=-2, seed=1)):
        assert len("".join(text)) > 200 and model.session.position == model.n_ctx
    for wrong in (-3, 2.5, "5", None, True):
        with pytest.raises(IkpyError, match="n_predict is"):
            model.generate("AB", n_predict=wrong)
        with pytest.raises(IkpyError, match="n_predict is"):
            model.chat(CHAT, n_predict=wrong)


def test_the_end_of_a_chat_says_why(model):
    def told(pieces):
        return (yield from pieces)

    def end_of(pieces):
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return end.value

    end = end_of(told(model.chat(CHAT, n_predict=5, temp=0, ignore_eos=True)))
    assert (end.why, len(end.ids)) == ("length", 5)
    text = model.detokenize(end.ids)
    end = end_of(model.chat(CHAT, n_predict=5, temp=0, ignore_eos=True, stop=text[1:3]))
    assert (end.why, end.stop) == ("stop", text[1:3])


def test_sampler_options_and_what_the_file_recommends(model, caplog):
    sampler = model.sampler(ignore_eos=True, logit_bias={3: 2.0})
    assert sampler.options.top_k == 7 and sampler.options.temp == 0.8
    assert model.sampler(top_k=3).options.top_k == 3
    logits = np.zeros(model.n_vocab, np.float32)
    logits[END] = 99
    assert model.sampler(temp=0, ignore_eos=True).sample(logits) == 0
    text = "".join(model.generate("A", n_predict=6, logit_bias={5: 1e6}))
    assert text == LETTERS[5] * 6
    for wrong, part in (
        (
            {"top_q": 1},
            r"there is no option called top_q: did you mean top_p or top_k\? Those of Model\.\w+ are: .*temp, ",
        ),
        ({"dialect": "x"}, "dialect"),
        ({"samplers": "x"}, "'x'"),
        ({"temp": "hot"}, "temp is 'hot'"),
        ({"temp": None}, "temp is None"),
        ({"logit_bias": 5}, "logit_bias is 5"),
        ({"dry_sequence_breakers": 5}, "dry_sequence_breakers is 5"),
    ):
        for call in (partial(model.generate, "AB"), partial(model.chat, CHAT), model.sampler):
            with pytest.raises(IkpyError, match=part) as error:
                call(**wrong)
            assert "\n" not in str(error.value) and "__init__" not in str(error.value)


@pytest.mark.parametrize("rules", [{"grammar": 'root ::= "x"'}, {"json_schema": {}}], ids=list)
def test_a_missing_package_for_grammars_is_named(model, monkeypatch, rules):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(IkpyError, match="pip install llguidance"):
        model.generate("AB", **rules)


def test_grammar_and_schema(model):
    pytest.importorskip("llguidance")
    text = "".join(model.generate("AB", n_predict=50, grammar='root ::= ("C" | "D")[0-9]{3}\n', temp=2.0))
    assert text[0] in "CD" and text[1:].isdigit() and len(text) == 4
    schema = {"type": "array", "items": {"type": "integer", "minimum": 10, "maximum": 99}, "minItems": 2, "maxItems": 2}
    found = json.loads("".join(model.chat(CHAT, n_predict=80, json_schema=schema, temp=1.0, seed=1)))
    assert len(found) == 2 and all(10 <= x <= 99 for x in found)

    class Found:  # as a class of pydantic
        model_json_schema = staticmethod(lambda: {"enum": [10, 20]})

    assert "".join(model.generate("AB", n_predict=20, json_schema=Found)) in ("10", "20")
    with pytest.raises(IkpyError, match=r"no token of the vocabulary goes on with the text$"):
        "".join(model.generate("AB", n_predict=20, json_schema={"enum": ["x", "y"]}))
    with pytest.raises(IkpyError, match="json_schema is 3; a text"):
        model.generate("AB", json_schema=3)
    with pytest.raises(IkpyError, match="exclude"):
        model.generate("AB", grammar="x", json_schema={})


def test_chat_template_choice_and_mistakes(model):
    conversation = model.conversation(CHAT, template="{{ bos_token }}{{ messages[0].content }}{{ mood }}", mood="?")
    assert conversation.tokens() == ("AB?", model.tokenize("AB?"))
    with pytest.raises(IkpyError, match="vicuna"):
        model.chat(CHAT, template="bogus")
    with pytest.raises(IkpyError, match="role"):
        model.chat([{"content": "x"}])
    assert list(model.chat(CHAT, template="chatml", n_predict=0)) == []


def test_perplexity_against_its_definition(model):
    text = "".join(LETTERS[i] for i in np.random.default_rng(3).integers(1, 60, 100))
    ids = model.tokenize(text)
    assert len(ids) == 100
    nll = []
    for chunk in (ids[:32], ids[32:64], ids[64:96]):
        logits = model.logits(chunk).astype(np.float64)
        for i in range(16, 31):
            nll.append(np.log(np.exp(logits[i]).sum()) - logits[i, chunk[i + 1]])
    calls = []
    found = model.perplexity(text, n_ctx=32, progress=lambda *a: calls.append(a))
    assert found.value == pytest.approx(np.exp(np.mean(nll)), rel=1e-6) and found.n_scored == 45
    assert found.error == pytest.approx(np.std(nll) / np.sqrt(44) * found.value, rel=1e-5)
    assert found.running[0] == pytest.approx(np.exp(np.mean(nll[:15])), rel=1e-6) and len(found.running) == 3
    assert calls[-1] == (3, 3, "perplexity")
    assert model.perplexity(text, n_ctx=32, n_chunks=1).value == pytest.approx(found.running[0])
    for n_ctx, part in ((2, "4 to 256"), (512, "4 to 256"), (64, "needs 128")):
        with pytest.raises(IkpyError, match=part):
            model.perplexity(text, n_ctx=n_ctx)


def test_losses():
    logits = np.array([[0, 1, 2], [1e4, 0, -1e4]], np.float32)
    assert perplexity.losses(logits, [2, 0]) == pytest.approx([np.log(1 + np.exp(-1) + np.exp(-2)), 0])


@pytest.mark.slow
@pytest.mark.skipif("IKPY_GOLDEN" not in os.environ, reason="no reference data")
def test_perplexity_as_the_reference():
    golden = Path(os.environ["IKPY_GOLDEN"])
    with Model.load(golden / "models" / "llama.gguf", n_ctx=256) as model:
        found = model.perplexity((golden / "text" / "heldout.txt").read_text(encoding="utf-8"), n_ctx=256)
    assert found.value == pytest.approx(37.1303, rel=2e-4)
