"""Model.embed against the NumPy model's last norm: every pooling, with and without length 1."""

import numpy as np
import pytest
import tiny_gemma3
import tiny_llama
from reference_gemma3 import ReferenceGemma3
from reference_llama import ReferenceLlama

from ikpy_llm import IkpyError, Model
from ikpy_llm.engine.measure import embedding
from ikpy_llm.errors import ModelFileError

TOKENS = np.random.default_rng(4).integers(0, tiny_llama.N_VOCAB, 90).tolist()
KINDS = {"llama": (tiny_llama, ReferenceLlama), "gemma3": (tiny_gemma3, ReferenceGemma3)}
JOINED = {"none": lambda x: x, "mean": lambda x: x.mean(0), "cls": lambda x: x[0], "last": lambda x: x[-1]}


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, folder):
    """(model, the rows its last norm should give)."""
    writer, reference = KINDS[request.param]
    path = writer.write(folder / f"{request.param}.gguf", ("F32",))
    with Model.load(path, n_ctx=256, threads=2, n_ubatch=64) as model:
        yield model, reference(path, np.float16).hidden(TOKENS)


@pytest.mark.parametrize("pooling", JOINED)
def test_embeddings_are_those_of_the_model(loaded, pooling):
    model, rows = loaded
    expected = JOINED[pooling](rows)
    got = model.embed(TOKENS, pooling=pooling, normalize=False)
    assert got.shape == expected.shape == ((90, 64) if pooling == "none" else (64,)) and got.dtype == np.float32
    assert abs(got - expected).max() < 2e-3 * expected.std()
    unit = model.embed(np.array(TOKENS), pooling=pooling)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize(("number", "pooling"), [(None, "mean"), (0, "mean"), (1, "mean"), (2, "cls"), (3, "last")])
def test_the_file_says_how_rows_are_joined(folder, number, pooling):
    path = tiny_llama.write(folder / "asks.gguf", ("F32",), pooling_type=number)
    with Model.load(path, n_ctx=256, threads=1) as model:
        np.testing.assert_array_equal(model.embed(TOKENS), model.embed(TOKENS, pooling=pooling))


@pytest.mark.parametrize("number", [4, -1, True, "mean", 1.5])
def test_pooling_of_another_kind_is_refused(number):
    with pytest.raises(ModelFileError, match=r"x\.gguf: metadata key 'llama\.pooling_type'.*3 \(last\)") as error:
        embedding.pooling_of({"general.architecture": "llama", "llama.pooling_type": number}, "x.gguf")
    assert "\n" not in str(error.value)


def test_zero_rows_stay_zero():
    np.testing.assert_array_equal(embedding.pooled(np.zeros((3, 4), np.float32), "mean", True), np.zeros(4))


def test_errors_and_what_was_in_the_sequence(loaded):
    model, _ = loaded
    model.reset()
    before = model.session.eval(TOKENS[:5])
    for wrong, part in (
        ({"text": TOKENS, "pooling": "rank"}, "pooling is 'rank'; none, mean, cls, last"),
        ({"text": []}, "there are no tokens; one token id or more are accepted"),
        ({"text": None}, "text is None; a text or a list of token ids is accepted"),
        ({"text": [1.5]}, "a text or a list of token ids is accepted"),
        ({"text": TOKENS * 3}, "does not fit into the context of 256"),
        ({"text": [70]}, "token id 70"),
    ):
        with pytest.raises(IkpyError, match=part):
            model.embed(**wrong)
    model.embed(TOKENS)
    model.session.rewind(0)
    np.testing.assert_array_equal(model.session.eval(TOKENS[:5]), before)
