"""--pp-requant: prompts with matrices requantized to Q8_0, tokens with the exact ones."""

from types import SimpleNamespace

import gguf_writer
import numpy as np
import pytest
import reference_formats as formats
import tiny_llama
from gguf import GGMLQuantizationType, quants
from matmul_cases import random_rows

from ikpy_llm import Model
from ikpy_llm.engine.file import requant
from ikpy_llm.engine.file.derived import Derived
from ikpy_llm.engine.file.unwoven import unwoven
from ikpy_llm.engine.graph import latents
from ikpy_llm.kernels.quants import file_types, table
from ikpy_llm.kernels.quants.interleaved import weave

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def two_files(folder, tied: bool):
    """A model of small types, and one with what its prompts use; a table of tokens is looked up exactly in both."""
    meta = tiny_llama.meta()
    tensors = tiny_llama.tensors(meta, ("Q4_1", "Q5_0"), tied=tied)
    small = gguf_writer.write(folder / "small.gguf", meta, tensors)
    if tied:
        tensors["output.weight"] = tensors["token_embd.weight"]
    for name, (kind, shape, raw) in tensors.items():
        if len(shape) == 2 and name != "token_embd.weight":
            rows = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)
            tensors[name] = ("Q8_0", shape, requant.q8_0(quants.dequantize(rows, GGMLQuantizationType[kind])).tobytes())
    return small, gguf_writer.write(folder / "large.gguf", meta, tensors)


def logits(path, **options):
    """Logits after a prompt, and after a token alone."""
    with Model.load(path, threads=2, n_ctx=256, **options) as model:
        session = model.session
        prompt = session.eval(TOKENS)
        session.rewind()
        return prompt, session.eval(TOKENS[:1])


@pytest.mark.parametrize(("repack", "tied"), [(True, False), (True, True), (False, False)])
def test_prompts_are_those_of_the_requantized_matrices(tmp_path, repack, tied, caplog):
    small, large = two_files(tmp_path, tied)
    caplog.set_level("INFO", "ikpy")
    (prompt, token), (wanted, _), (exact, exact_token) = (
        logits(small, pp_requant=True, repack=repack),
        logits(large, repack=repack),
        logits(small, repack=repack),
    )
    assert (prompt == wanted).all() and (prompt != exact).any()
    assert (token == exact_token).all()
    shapes = [(70, 64), *[(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)] * 2]
    size = sum(n * k for n, k in shapes)
    line = f"prompts use 15 matrices requantized to Q8_0: {size * 34 / 32 / 1e6:.1f} MB more memory"
    assert [r.message for r in caplog.records].count(line) == 1
    # steps of a prompt may have one token
    assert (logits(small, pp_requant=True, repack=repack, n_ubatch=1)[0] == prompt).all()


def test_rounding():
    """Half a step of d = largest / 127, and the rounding of d to f16."""
    x = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    x[0] = 0
    blocks = requant.q8_0(x)
    values = quants.dequantize(blocks.reshape(8, -1), GGMLQuantizationType.Q8_0)
    step = np.repeat(abs(x.reshape(-1, 32)).max(1) / 127, 32).reshape(x.shape)
    assert (abs(values - x) <= step * (0.5 + 127 * 2.0**-11)).all()
    assert (values[0] == 0).all()


def test_types_of_8_bits_and_more_stay():
    kinds = {"Q8_0": False, "F16": False, "Q8_KV": False, "Q6_K": True, "IQ1_KT": True, "Q4_0": True}
    assert {k: requant.is_small(Derived("w", k, (8, 256), None)) for k in kinds} == kinds


@pytest.mark.parametrize("name", file_types())
def test_what_products_multiply_with_is_requantized(name):
    """Every type a file may have, with the gain that products of some have and decoded rows have not; made of rows of
    their base type where they are interleaved. Latents' matrices take their numbers the same way.
    """
    base, shape = weave.base_of(name), (16, 512)
    raw, stored = random_rows(base, *shape), None
    if name == "I2_S":
        stored = np.random.default_rng(1).integers(0, 256, table.tensor_bytes(name, shape), np.uint8)
        stored[-32:-28] = np.frombuffer(np.float32(0.02), np.uint8)  # the scale of all
        raw = weave.from_i2_s(stored, *shape)
    elif name != base:
        stored = weave.weave(name, raw)
    wanted = formats.decode(base, raw).exact
    source = SimpleNamespace(name="w", type_name=name, shape=shape, data=stored, release=lambda: None)
    t = Derived("w", base, shape, lambda: raw) if stored is None else unwoven(source)
    assert t.type_name == base
    np.testing.assert_allclose(latents.values_of(t, as_numbers=True), wanted, rtol=1e-6, atol=0)
    got = formats.decode("Q8_0", requant.as_q8_0(t).data.reshape(16, -1)).exact
    largest = np.repeat(abs(wanted).reshape(16, -1, 32).max(2), 32, axis=1)
    bound = largest / 127 * (0.5 + 127 * 2.0**-11) + 127 * 2.0**-25  # half a step, and d as f16 or a denormal of it
    assert (abs(got - wanted) <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["IQ2_KT", "IQ3_KT"])
def test_prompts_have_the_gain(tmp_path, name):
    """Logits of a model against those of one whose matrices are Q8_0 from the start."""
    meta = tiny_llama.meta(n_embd=256, n_ff=512)
    tensors = tiny_llama.tensors(meta)
    large = dict(tensors)
    for i, (key, (_, shape, _)) in enumerate(tensors.items()):
        if len(shape) == 2 and key != "token_embd.weight" and shape[1] % 256 == 0:
            raw = random_rows(name, *shape, seed=i)
            tensors[key] = (name, shape, raw.tobytes())
            w = formats.decode(name, raw)
            large[key] = ("Q8_0", shape, requant.q8_0(w.float32 * np.float32(w.gain)).tobytes())
    small = gguf_writer.write(tmp_path / "small.gguf", meta, tensors)
    large = gguf_writer.write(tmp_path / "large.gguf", meta, large)
    (prompt, _), (wanted, _) = logits(small, pp_requant=True), logits(large)
    assert (prompt == wanted).all()


def test_weights_of_a_damaged_file_give_no_warning():
    """Scales beyond what an f16 holds are infinite, those of NaN are NaN; both are noticed where they are used."""
    large, odd = (requant.q8_0(np.full((1, 32), x, np.float32)) for x in (1e7, np.nan))
    assert large[0, :2].view(np.float16) == np.inf and np.isnan(odd[0, :2].view(np.float16))
    assert latents.encoded(np.float32([1e6, 1]), "F16").tolist() == [np.inf, 1]
    raw = random_rows("IQ2_KT", 1, 256)
    raw[:, :4] = np.frombuffer(np.float32(3e38), np.uint8)  # the row's scale, times a gain of 1.05
    assert not np.isfinite(requant.multiplied(raw, "IQ2_KT", (1, 256))).all()
