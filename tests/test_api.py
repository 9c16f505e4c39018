"""The Python API: text in, text out; nothing heavy is imported before it is needed."""

import subprocess
import sys

import gguf_writer
import numpy as np
import pytest
import tiny_llama

import ikpy_llm
from ikpy_llm import IkpyError, Model
from ikpy_llm.kernels.run import cores


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model whose token i is chr(33 + i); 68 begins and 69 ends a text."""
    letters = ["cd", *(chr(33 + i) for i in range(1, tiny_llama.N_VOCAB - 2))]
    m = tiny_llama.meta() | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*letters, "<s>", "</s>"],
        "tokenizer.ggml.token_type": [1] * len(letters) + [3, 3],
        "tokenizer.ggml.merges": ["c d"],
        "tokenizer.ggml.bos_token_id": 68,
        "tokenizer.ggml.eos_token_id": 69,
        "tokenizer.ggml.add_bos_token": True,
    }
    return gguf_writer.write(tmp_path_factory.mktemp("api") / "m.gguf", m, tiny_llama.tensors(m, ("Q8_0",)))


@pytest.fixture
def model(path):
    with Model.load(path, n_ctx=256, threads=2) as model:
        yield model


def test_text_and_tokens(model):
    assert model.tokenize("AB") == [68, 32, 33]
    assert model.tokenize("AB", add_special=False) == [32, 33]
    assert model.detokenize([68, 32, 33]) == "AB"
    assert (model.n_ctx, model.n_vocab, model.threads) == (256, tiny_llama.N_VOCAB, 2)


def test_logits_start_a_new_sequence(model):
    first = model.logits([1, 2, 3])
    assert first.shape == (3, tiny_llama.N_VOCAB) and first.dtype == np.float32
    model.session.eval([9])
    np.testing.assert_array_equal(model.logits([1, 2, 3]), first)


def test_generation_streams_and_repeats(model):
    greedy = list(model.generate("AB", n_predict=20, temp=0, ignore_eos=True))
    assert 1 <= len(greedy) <= 20
    assert list(model.generate("AB", n_predict=20, temp=0, ignore_eos=True)) == greedy
    seeded = ["".join(model.generate("AB", n_predict=20, seed=s, ignore_eos=True)) for s in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert list(model.generate([68, 32, 33], n_predict=20, temp=0, ignore_eos=True)) == greedy
    assert list(model.generate("AB", n_predict=0)) == []


def test_generation_ends_with_the_context_or_the_text(model):
    assert len("".join(model.generate("AB", n_predict=-2, temp=1.5, seed=1))) > 200
    assert model.session.position == model.n_ctx
    model.vocab.eog.add(int(model.logits(model.tokenize("AB"))[-1].argmax()))
    assert list(model.generate("AB", temp=0)) == []


def test_timings_count_and_reset(model):
    "".join(model.generate("AB", n_predict=5, temp=0, ignore_eos=True))
    t = model.timings
    assert model._cache.tokens  # looking at timings is no reason to evaluate a text again
    assert t.prompt_rate == 3 / t.prompt_s and t.eval_rate == 4 / t.eval_s
    assert "prompt 3 tokens" in str(t) and f"{t.eval_rate:.1f} t/s" in str(t)
    assert t.load_s > 0 and t.n_prompt == 3 and t.n_eval == 4 and t.eval_s > 0 and t.eval_bytes > 0
    model.reset()
    assert (
        model.timings.n_eval == model.timings.eval_rate == model.timings.prompt_rate == 0
        and model.session.position == 0
    )


def test_no_positive_number_of_threads_is_automatic(path, monkeypatch):
    automatic = cores.default_threads()
    for threads in (0, -1, np.int64(-7)):
        with Model.load(path, n_ctx=256, threads=threads, threads_batch=threads) as model:
            assert model.threads == automatic
    for text in ("0", "-1"):
        monkeypatch.setenv("IKPY_THREADS", text)
        with Model.load(path, n_ctx=256) as model:
            assert model.threads == automatic


def test_errors_are_one_line(model, path, tmp_path):
    with pytest.raises(IkpyError, match="top_q"):
        model.generate("AB", top_q=3)
    with pytest.raises(IkpyError, match="grammar is 5; a text is accepted"):
        model.generate("AB", grammar=5)
    with pytest.raises(IkpyError, match="prompt is empty"):
        model.generate([])
    for wrong in (None, 5, b"x", [1.5], ["a"]):
        with pytest.raises(IkpyError, match=r"prompt is .*; a text or a list of token ids is accepted"):
            model.generate(wrong)
    with pytest.raises(IkpyError, match="the prompt of 301 tokens does not fit into the context of 256 positions"):
        model.generate("A" * 300)
    with pytest.raises(IkpyError, match="a text of 300 tokens does not fit into the context of 256 positions"):
        model.logits([1] * 300)
    for wrong in (
        {"n_ctx": -5},
        {"n_ctx": "512"},
        {"threads": 1025},
        {"threads": "2"},
        {"threads_batch": 1.5},
        {"threads_batch": 5000},
        {"n_batch": 0},
        {"n_ubatch": True},
    ):
        with pytest.raises(IkpyError, match=f"{next(iter(wrong))} is .* is accepted"):
            Model.load(path, **wrong)
    with pytest.raises(IkpyError) as error:
        Model.load(tmp_path / "missing.gguf")
    assert "\n" not in str(error.value)


def test_a_closed_model_says_so(path):
    model = Model.load(path, n_ctx=256)
    model.close()
    model.close()
    with pytest.raises(IkpyError, match="closed"):
        model.session.eval([1])


def test_the_file_must_not_change(path, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    with Model.load(copy, n_ctx=256) as model:
        model.session.eval([1])
        with copy.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(IkpyError, match="changed"):
            model.session.eval([1])


def test_a_warm_start_imports_no_compiler(path):
    code = f"""
import sys
import ikpy_llm
assert "numpy" not in sys.modules
model = ikpy_llm.Model.load({str(path)!r}, n_ctx=256, threads=2)
"".join(model.generate("AB", n_predict=3, temp=0))
heavy = {{"numba", "gguf", "rich", "jinja2", "huggingface_hub", "psutil", "platformdirs", "tokenizers"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_names_of_the_package():
    assert {"Model", "dequantize", "matmul", "quant_types", "IkpyError"} <= set(dir(ikpy_llm))
    with pytest.raises(AttributeError, match="modell"):
        ikpy_llm.modell  # noqa: B018
