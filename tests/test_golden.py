"""Whole models against reference results: a small trained llama in data/, and the demo model where it is cached.

The data were made with transformers and ik_llama.cpp; the bounds are the differences those two show among themselves.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from reference_deepseek2 import ReferenceDeepseek2
from reference_moe import margin, sigmoid

from ikpy_llm import Model, dequantize, models
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.options import Options
from ikpy_llm.engine.step.session import Session

DATA = Path(__file__).parent / "data"
GOLDEN = Path(os.environ.get("IKPY_GOLDEN", "golden"))


def greedy(model, ids, n):
    """n tokens, always the most likely."""
    model.reset()
    logits, out = model.session.eval(ids), []
    for _ in range(n):
        out.append(int(logits[0].argmax()))
        logits = model.session.eval(out[-1:])
    return out


@pytest.fixture(scope="module")
def llama():
    with Model.load(DATA / "golden_llama.gguf", threads=2) as model:
        yield model


@pytest.mark.parametrize("prompt", ["short", "medium"])
def test_llama_agrees_with_transformers(llama, prompt):
    golden = np.load(DATA / "golden_llama.npz")
    ids, expected = golden[f"{prompt}.ids"], golden[f"{prompt}.hf"]
    assert llama.tokenize(str(golden[f"{prompt}.prompt"])) == list(ids)
    error = abs(llama.logits(ids) - expected)
    assert error.max() < 8e-3 and error.mean() < 3e-4
    assert greedy(llama, ids, 64) == list(golden[f"{prompt}.hf_greedy"])


@pytest.mark.slow
def test_model_of_many_types():
    """One tensor each of 21 types, against float32 arithmetic on the dequantized weights.

    Activations of 8 bits make the difference: 0.202 at most and 0.0201 on average in ik_llama.cpp, 0.224 and 0.0208 in
    llama.cpp, which have one scale per 256 columns for many types.
    """
    golden = np.load(DATA / "golden_llama_mixA.npz")
    path = DATA / "golden_llama_mixA.gguf"
    assert len({t.type_name for t in open_gguf(path).tensors.values()} - {"F32"}) == 21
    with Model.load(path, threads=2) as model:
        logits = model.logits(golden["ids"])
    error = abs(logits - golden["hf_deq"].astype(np.float32))
    assert error.max() < 0.202 and error.mean() < 0.0201, (error.max(), error.mean())
    assert (logits.argmax(1) == golden["hf_deq"].argmax(1)).mean() > 0.97


# Files of the types that only ik_llama.cpp has, interleaved ones too: largest and mean difference of its own logits to
# float32 arithmetic on the dequantized weights (golden/README.md).
MIXES = {
    "llama.q8_0": (0.145, 0.013),
    "llama.mixB": (0.23, 0.022),
    "llama.mixC": (0.25, 0.021),
    "llama.mixD": (0.24, 0.022),
    "bitnet.iq2_bn": (4.3e-2, 6e-3),
    "bitnet.iq1_bn": (4.3e-2, 6e-3),
}


@pytest.mark.model
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="IKPY_GOLDEN does not name the folder of the reference data")
@pytest.mark.parametrize("name", MIXES)
def test_types_of_ik_in_whole_models(name):
    golden = np.load(GOLDEN / "models" / f"{name}.npz")
    expected = golden["long.hf_deq"].astype(np.float32)
    if "long.hf_deq_ktscale_delta" in golden:  # products of two trellis types have a factor that their rows have not
        expected = expected + golden["long.hf_deq_ktscale_delta"].astype(np.float32)
    for repack in True, False:
        with Model.load(GOLDEN / "models" / f"{name}.gguf", threads=2, n_ctx=256, repack=repack) as model:
            logits = model.logits(golden["long.ids"])
        error, (highest, mean) = abs(logits - expected), MIXES[name]
        assert error.max() < highest and error.mean() < mean, (repack, error.max(), error.mean())
        assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.97


# Largest and mean difference to transformers on the long prompt: twice those of ik_llama.cpp (golden/README.md).
TINY = {
    "qwen3": (4.2e-3, 1.8e-4),
    "qwen3moe": (4e-3, 4.4e-4),
    "deepseek2_v2lite": (1.8e-2, 3.2e-4),
    "qwen2": (4.8e-3, 1.9e-4),
    "gemma3": (2.4e-3, 8e-5),
}


@pytest.mark.model
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="IKPY_GOLDEN does not name the folder of the reference data")
@pytest.mark.parametrize("name", TINY)
def test_architectures_agree_with_transformers(name):
    golden = np.load(GOLDEN / "models" / f"{name}.npz")
    results = []
    for threads, n_ubatch in (1, 512), (2, 512), (3, 50):
        options = {"threads": threads, "n_ubatch": n_ubatch, "n_ctx": 512, "mla": 1}
        with Model.load(GOLDEN / "models" / f"{name}.gguf", **options) as model:
            ids, expected = golden["long.ids"], golden["long.hf"]
            results.append(model.logits(ids))
            assert model.tokenize(str(golden["long.prompt"])) == list(ids)
            assert greedy(model, ids, 64) == list(golden["long.hf_greedy"])
            model.reset()
            one_by_one = np.concatenate([model.session.eval([token]) for token in ids])
            np.testing.assert_array_equal(one_by_one, results[0])
            np.testing.assert_array_equal(results[-1], results[0])
    error, (highest, mean) = abs(results[0] - expected), TINY[name]
    assert error.max() < highest and error.mean() < mean


# Mean difference on the long prompt: twice what the reference shows, in float types; that of llama.cpp in Q4_K_M.
DEEPSEEK = {
    ("deepseek2_v2lite", "hf"): 3.2e-4,
    ("deepseek2_v3", "hf"): 5e-4,
    ("deepseek2_v3.mla.q4_k_m", "hf_deq"): 0.0121,
}


@pytest.mark.model
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="IKPY_GOLDEN does not name the folder of the reference data")
@pytest.mark.parametrize(("name", "key"), DEEPSEEK)
@pytest.mark.parametrize("mla", range(4))
def test_latent_attention_agrees_in_every_mode(name, key, mla):
    """But for a position or two, see clear_mean: golden/README.md knows of one."""
    golden = np.load(GOLDEN / "models" / f"{name}.npz")
    ids, expected = golden["long.ids"], golden[f"long.{key}"].astype(np.float32)
    with Model.load(GOLDEN / "models" / f"{name}.gguf", n_ctx=512, mla=mla, threads=2) as model:
        assert clear_mean(abs(model.logits(ids) - expected)) < DEEPSEEK[name, key]
        if mla == 3:
            assert greedy(model, ids, 64) == list(golden[f"long.{key}_greedy"])


# Without the limit on groups of experts, which ik_llama.cpp does not know; mean difference as ik_llama.cpp's.
GROUPS = "deepseek2.expert_group_count", "deepseek2.expert_group_used_count"
WITHOUT_GROUPS = {"deepseek2_v3": ("hf", 5e-4), "deepseek2_v3.mix": ("hf_deq", 0.0118)}


def opened(name, groups=True, **options):
    """A golden model, with or without the limit on groups of experts."""
    file = open_gguf(GOLDEN / "models" / f"{name}.gguf")
    for key in () if groups else GROUPS:
        del file.meta[key]
    session = Session(file, models.builder(file.meta, name), Options(n_ctx=512, threads=2, **options))
    return Model(session, file.meta, name, 0.0)


def clear_mean(error):
    """Mean without the two worst positions: where the choice of experts is nearly a tie, all logits move."""
    return np.sort(error.mean(1))[:-2].mean()


@pytest.mark.model
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="IKPY_GOLDEN does not name the folder of the reference data")
@pytest.mark.parametrize("name", WITHOUT_GROUPS)
@pytest.mark.parametrize("mla", range(4))
def test_experts_without_groups(name, mla):
    key, mean = WITHOUT_GROUPS[name]
    golden = np.load(GOLDEN / "models" / f"{name}.npz")
    expected = golden[f"long.{key}"].astype(np.float32)
    if key == "hf":
        expected = expected + golden["long.hf_nogroup_delta"]
    with opened(name, groups=False, mla=mla) as model:
        logits = model.logits(golden["long.ids"])
    assert clear_mean(abs(logits - expected)) < mean
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.97


class EightBits(ReferenceDeepseek2):
    """What the file means in float64, with activations rounded to 8 bits as ours are; `margins`: of choices of experts.

    Its weights are dequantized by ikpy (golden/quants is the judge of that): gguf does not know all types.
    """

    def read(self, file):
        self.architecture = file.meta["general.architecture"]
        self.meta = {k.removeprefix(f"{self.architecture}."): v for k, v in file.meta.items()}
        self.types = {t.name: t.type_name for t in file.tensors.values()}
        self.eight_bits = set(self.types.values()) - {"F32", "F16", "BF16"}
        self.w = {t.name: self.values(t).astype(np.float64) for t in file.tensors.values()}

    def values(self, t):
        if t.type_name == "F32":
            return t.data.view(np.float32).reshape(t.shape)
        return dequantize(t.data, t.type_name, (math.prod(t.shape[:-1]), t.shape[-1])).reshape(t.shape)

    def routes(self, i, logits):
        m = self.meta
        groups = m.get("expert_group_count", 1), m.get("expert_group_used_count", 1)
        scores = sigmoid(logits) + self.w[f"blk.{i}.exp_probs_b.bias"]
        self.margins = np.array([margin(row, m["expert_used_count"], *groups) for row in scores])
        return super().routes(i, logits)


@pytest.mark.model
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="IKPY_GOLDEN does not name the folder of the reference data")
@pytest.mark.parametrize(("name", "groups"), [("deepseek2_v3.mix", False), ("deepseek2_v3.mla.q4_k_m", True)])
def test_every_position_is_what_8_bit_activations_make_of_it(name, groups):
    """Without their rounding the differences are 0.65 and 0.61: where scores of attention reach 1,250, a rounding moves
    the weight of a key from 0.93 to 0.84, and position 80 of the second chooses other experts, by a margin of 0.0009.
    """
    ids = np.load(GOLDEN / "models" / f"{name}.npz")["long.ids"]
    for mla in range(4):
        with opened(name, groups, mla=mla) as model:
            reference = EightBits(model.session.file)
            expected, logits = reference.logits(ids), model.logits(ids)
        error, is_clear = abs(logits - expected), reference.margins > 0.002
        assert is_clear.sum() >= len(ids) - 2
        assert error[is_clear].max() < 0.14 and error.mean() < 0.0062, (mla, error[is_clear].max(), error.mean())


@pytest.mark.model
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="IKPY_GOLDEN does not name the folder of the reference data")
def test_experts_of_many_types():
    golden = np.load(GOLDEN / "models/qwen3moe.mix.npz")
    expected = golden["long.hf_deq"].astype(np.float32)
    for repack in True, False:
        with opened("qwen3moe.mix", repack=repack) as model:
            logits = model.logits(golden["long.ids"])
        assert abs(logits - expected).mean() < 0.0196, repack  # ik_llama.cpp's
        assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.96


HELD_OUT = (
    "gemma3 qwen3moe qwen3moe.mix deepseek2_v2lite deepseek2_v3 deepseek2_v3.mix bitnet.iq2_bn llama.q8_0".split()
)


@pytest.mark.model
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="IKPY_GOLDEN does not name the folder of the reference data")
@pytest.mark.parametrize("name", HELD_OUT)
def test_perplexity_of_the_held_out_text(name):
    """All of them: benchmarks/golden_models.py."""
    golden = np.load(GOLDEN / "models" / f"{name}.npz")
    stated = json.loads(str(golden["report"]))["ppl_ctx256"]
    expected = next(stated[k] for k in ("hf_deq_ktscale", "hf_deq", "hf") if k in stated)
    text = (GOLDEN / "text/heldout.txt").read_text(encoding="utf-8")
    with opened(name, groups=name != "deepseek2_v3.mix") as model:
        assert model.perplexity(text, 256).value == pytest.approx(expected, rel=1e-3)


def test_text_of_a_greedy_continuation(llama):
    golden = np.load(DATA / "golden_llama.npz")
    decoder = llama.vocab.decoder()
    expected = "".join(map(decoder.feed, golden["short.hf_greedy"].tolist()))
    pieces = list(llama.generate(str(golden["short.prompt"]), n_predict=64, temp=0, ignore_eos=True))
    assert len(pieces) > 20 and "".join(pieces) == expected


@pytest.fixture(scope="module")
def smollm2():
    from ikpy_llm.engine.file.demo_model import MEMBER, models_folder

    path = models_folder() / Path(MEMBER).name
    if not path.is_file():
        pytest.skip("the demo model is not in the cache")
    with Model.load(path) as model:
        yield model


@pytest.mark.model
@pytest.mark.parametrize("prompt", ["capital", "code", "kjv"])
def test_smollm2_agrees_with_exact_arithmetic(smollm2, prompt):
    golden = np.load(DATA / "golden_smollm2.npz")
    ids, top, values = (golden[f"{prompt}.{k}"] for k in ("ids", "deqf32.top_ids", "deqf32.top_vals"))
    assert smollm2.tokenize(str(golden[f"{prompt}.prompt"])) == list(ids)
    logits = smollm2.logits(ids)
    error = abs(np.take_along_axis(logits, top, 1) - values)
    assert error.max() < 2.2 and error.mean() < 0.35  # ik_llama.cpp: 2.16, 0.32
    assert (logits.argmax(1) == top[:, 0]).mean() >= 0.92


@pytest.mark.model
@pytest.mark.parametrize("prompt", ["capital", "code", "kjv"])
def test_smollm2_chooses_the_same_tokens_where_the_choice_is_clear(smollm2, prompt):
    """Led along the reference's text, it leaves it only where two tokens are nearly as likely."""
    golden = np.load(DATA / "golden_smollm2.npz")
    smollm2.reset()
    logits, wrong = smollm2.session.eval(golden[f"{prompt}.ids"])[0], 0
    for token in golden[f"{prompt}.deqf32.greedy"]:
        assert logits.max() - logits[token] < 0.5
        wrong += int(logits.argmax() != token)
        logits = smollm2.session.eval([token])[0]
    assert wrong <= 6


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france(smollm2):
    text = "".join(smollm2.generate("The capital of France is", n_predict=24, temp=0))
    assert text.startswith(" Paris") and len(text) > 20
