"""Hyperparameters and tensors: what a file must have, and what is refused."""

import math

import gguf_writer
import numpy as np
import pytest
import tiny_deepseek2
import tiny_llama

from ikpy_llm import models
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.graph import rope
from ikpy_llm.engine.graph.graph import Graph
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.errors import ModelFileError


def trace(meta, shapes, types=None):
    """The graph of a model with these tensors (all F32 unless `types` says otherwise), all checks made."""
    types = types or {}
    tensors = {n: Fake(n, s, types.get(n, "F32")) for n, s in shapes.items()}
    params = Params("x.gguf", meta["general.architecture"], meta)
    graph = Graph("x.gguf", tensors)
    assert params.n_ctx_train
    models.builder(meta, "x.gguf")(graph, params)
    graph.check_all_claimed()
    params.check_all_read()
    return graph


class Fake:
    def __init__(self, name, shape, type_name):
        self.name, self.shape, self.type_name = name, shape, type_name


META = tiny_llama.meta()
SHAPES = tiny_llama.shapes(META)
FOUR = tiny_llama.meta(n_layer=4)


def test_every_tensor_is_claimed():
    graph = trace(META, SHAPES)
    assert set(graph.claimed) == set(SHAPES)
    assert graph.claimed["token_embd.weight"] == "rows"
    tied = trace(META, tiny_llama.shapes(META, tied=True, bias=True, freqs=True))
    assert tied.claimed["token_embd.weight"] == "rows+matrix"
    assert tied.claimed["rope_freqs.weight"] == "table"


@pytest.mark.parametrize("name", sorted(tiny_llama.shapes(META, tied=False)))
def test_a_missing_tensor_is_an_error(name):
    if name == "output.weight":
        pytest.skip("tied embeddings")
    with pytest.raises(ModelFileError, match=rf"x.gguf: tensor '{name}' of shape .* is missing"):
        trace(META, {k: v for k, v in SHAPES.items() if k != name})


@pytest.mark.parametrize("name", sorted(tiny_llama.shapes(META, bias=True, freqs=True)))
def test_a_wrong_shape_is_an_error(name):
    shapes = tiny_llama.shapes(META, bias=True, freqs=True)
    shapes[name] = (*shapes[name][:-1], shapes[name][-1] + 32)
    with pytest.raises(ModelFileError, match=r"has shape .* the hyperparameters imply"):
        trace(META, shapes)


def test_a_tensor_nobody_asks_for_is_an_error():
    with pytest.raises(ModelFileError, match=r"2 tensors are not part .*: 'blk.2.attn_k.weight'"):
        trace(META, SHAPES | {"blk.2.attn_q.weight": (64, 64), "blk.2.attn_k.weight": (64, 64)})


def test_a_quantized_norm_is_an_error():
    with pytest.raises(ModelFileError, match=r"'output_norm.weight' is F16; only F32"):
        trace(META, SHAPES, {"output_norm.weight": "F16"})


REFUSED = {
    "rope.scaling.type": ("longrope", "accepted: none, linear, yarn"),
    "rope.scaling.yarn_ext_factor": (0.5, "accepted: 0.0"),
    "attention.sliding_window": (4096, "accepted: 0"),
    "expert_used_count": (8, "accepted: 0"),
    "attention.scale": (0.1, "accepted: 0.0"),
    "logit_scale": (0.5, "accepted: 0.0 or 1.0"),
    "attention.clamp_kqv": (8.0, "accepted: 0.0"),
    "attention.causal": (False, "accepted: True"),
    "embedding_length": ("many", "one whole number"),
    "block_count": (0, "accepted: 1 to"),
    "attention.head_count": ([4, 8], "one whole number"),
    "attention.head_count_kv": (3, "no multiple"),
    "attention.layer_norm_rms_epsilon": (float("nan"), "accepted: 1e-30 to"),
    "rope.freq_base": (float("inf"), "accepted: 1.001 to"),
    "rope.dimension_count": (15, "an even number up to the head's 16"),
    "rope.dimension_sections": ([2, 2, 2, 2], "accepted: 0"),
    "attention.temperature_scale": (0.1, "accepted: 0.0"),
    "hidden_activation": ("gelu_new", "accepted: silu or swish"),
    "feed_forward_length": (1 << 40, "accepted: 1 to"),
    "attention.key_length_mla": (32, "accepted: 0"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_metadata_that_would_be_run_wrongly_is_refused(key):
    value, why = REFUSED[key]
    with pytest.raises(ModelFileError, match=why) as error:
        trace(META | {"llama." + key: value}, SHAPES)
    assert str(error.value).startswith("x.gguf: ") and key in str(error.value)
    assert "\n" not in str(error.value)


BEYOND = {  # architecture: key, what it is without it
    ("llama", "attention.key_length"): 1 << 15,
    ("llama", "attention.value_length"): 4097,
    ("deepseek2", "attention.key_length_mla"): 1 << 15,
    ("deepseek2", "attention.value_length_mla"): 1 << 16,
}


@pytest.mark.parametrize(("architecture", "key"), BEYOND)
def test_sizes_that_reach_the_stack_of_a_kernel_are_bounded(architecture, key):
    meta = META if architecture == "llama" else tiny_deepseek2.meta(layout="k_b")
    with pytest.raises(ModelFileError, match=f"{key}' is {BEYOND[architecture, key]}; accepted: 1 to 4096"):
        trace(meta | {f"{architecture}.{key}": BEYOND[architecture, key]}, SHAPES)


def test_a_head_that_is_too_wide_without_a_key_for_it():
    meta = tiny_llama.meta(n_embd=1 << 15, n_head=1, n_head_kv=1, head_dim=None)
    with pytest.raises(ModelFileError, match=r"key_length' is missing, which means 32768; accepted: 1 to 4096"):
        trace(meta, {"token_embd.weight": (70, 1 << 15), "blk.0.attn_norm.weight": (1 << 15,)})


def test_metadata_that_changes_nothing_is_accepted():
    harmless = {"expert_count": 0, "rope.scaling.type": "none", "rope.scaling.finetuned": True, "logit_scale": 1.0}
    harmless |= {"attention.head_count": [4, 4], "rope.scale_linear": 1.0, "attention.causal": True}
    trace(META | {"llama." + k: v for k, v in harmless.items()}, SHAPES)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length"])
def test_a_missing_key_is_an_error(key):
    with pytest.raises(ModelFileError, match=f"metadata key 'llama.{key}' is missing"):
        trace({k: v for k, v in META.items() if k != "llama." + key}, SHAPES)


def test_defaults_of_optional_keys():
    optional = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count")
    p = Params("x", "llama", {k: v for k, v in META.items() if not k.endswith((*optional, "freq_base"))})
    assert (p.n_head_kv, p.head_dim, p.v_dim, p.n_rot, p.rope_base) == (4, 16, 16, 16, 10000.0)


@pytest.mark.parametrize("architecture", ["gpt9", "../llama", "__init__", "blocks", "", 7])
def test_unknown_architectures_are_named(architecture):
    with pytest.raises(ModelFileError, match="llama"):
        models.builder({"general.architecture": architecture}, "x.gguf")


def test_the_folder_is_the_registry():
    assert "llama" in models.architectures()
    for name in models.architectures():
        assert callable(models.builder({"general.architecture": name}, "x.gguf"))


def test_angles_follow_scaling_and_factors():
    freqs = np.array([1, 2, 4, 8], np.float32)
    plain = rope.table(rope.Angles(8, 100.0), 16)
    turn = 5 * 100.0 ** (-np.arange(0, 8, 2) / 8)
    assert plain.shape == (16, 4, 2) and plain.dtype == np.float32
    np.testing.assert_allclose(plain[5], np.stack([np.cos(turn), np.sin(turn)], -1), atol=1e-7)
    np.testing.assert_allclose(rope.table(rope.Angles(8, 100.0, 2.0), 16)[10], plain[5], atol=1e-7)
    np.testing.assert_allclose(
        rope.table(rope.Angles(8, 100.0, 1.0, "f"), 16, freqs)[8, 3],
        [np.cos(turn[3] / 5), np.sin(turn[3] / 5)],
        atol=1e-7,
    )


def yarn_by_hand(pos, i, n, base, factor, n_ctx, fast, slow, mix, scale, freq):
    """(cosine, sine) of one pair, as ggml computes it."""

    def pair(turns):
        return n * math.log(n_ctx / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(pair(fast))), min(n - 1, math.ceil(pair(slow)))
    whole = pos * base ** (-2 * i / n) / freq
    ramp = (1 - min(1, max(0, (i - low) / max(0.001, high - low)))) * mix
    angle = whole / factor * (1 - ramp) + whole * ramp
    scale *= 1 + 0.1 * math.log(factor) if mix else 1
    return math.cos(angle) * scale, math.sin(angle) * scale


@pytest.mark.parametrize("mix", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("fast", "slow", "n_ctx"), [(32, 1, 4096), (8, 2, 128), (1, 1, 64)])
def test_yarn_is_that_of_ggml(mix, fast, slow, n_ctx):
    freqs = np.linspace(1, 3, 16, dtype=np.float32)
    angles = rope.Angles(32, 1e4, 4.0, "f", 1.1, rope.Yarn(n_ctx, fast, slow, mix))
    got = rope.table(angles, 600, freqs)
    for pos in (0, 1, 77, 599):
        args = 32, 1e4, 4.0, n_ctx, fast, slow, mix, 1.1
        wanted = [yarn_by_hand(pos, i, *args, float(freqs[i])) for i in range(16)]
        np.testing.assert_allclose(got[pos], wanted, atol=2e-7)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_metadata_of_yarn(architecture):
    scaling = {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 128,
        "yarn_beta_fast": 16.0,
    }
    keys = {"rope__scaling__" + k: v for k, v in scaling.items()}
    graph = trace(tiny_llama.meta(architecture=architecture, **keys), SHAPES)
    (angles,) = {op.attrs["angles"] for op in graph.ops if op.name == "rope"}
    assert angles == rope.Angles(16, 1e4, 4.0, "", 1.0, rope.Yarn(128, 16.0, 1.0, 1.0))
    plain = {"rope__scaling__factor": 4.0, "rope__scaling__type": "none", "rope__scaling__yarn_beta_slow": 2.0}
    graph = trace(tiny_llama.meta(architecture=architecture, **plain), SHAPES)
    assert {op.attrs["angles"] for op in graph.ops if op.name == "rope"} == {rope.Angles(16, 1e4)}


GROWN = 1 + 0.1 * math.log(4)
FACTORS = [  # what the file states, and by what q and k grow at factor 4, as in HF transformers
    ({}, GROWN),
    ({"attn_factor": 1.3}, 1.3),
    ({"attn_factor": 1.0}, 1.0),
    ({"yarn_attn_factor": 1.3}, 1.3),
    ({"yarn_attn_factor": 1.0}, 1.0),
    ({"yarn_attn_factor": 1.3, "yarn_ext_factor": 0.5}, 1.3),
    ({"yarn_attn_factor": 1.3, "yarn_ext_factor": 0.0}, 1.3),
    ({"yarn_ext_factor": -1.0}, GROWN),
    ({"factor": 0.5}, 1.0),
    ({"type": "linear", "attn_factor": 1.3}, 1.3),
]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "smollm3"])
@pytest.mark.parametrize(("stated", "grown"), FACTORS)
def test_a_stated_factor_takes_the_place_of_that_of_yarn(architecture, stated, grown):
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 128} | stated
    keys = {"rope__scaling__" + k: v for k, v in scaling.items()}
    graph = trace(tiny_llama.meta(architecture=architecture, n_layer=4, **keys), tiny_llama.shapes(FOUR))
    (angles,) = {op.attrs["angles"] for op in graph.ops if op.name == "rope"}
    np.testing.assert_allclose(rope.table(angles, 1)[0, :, 0], grown, rtol=1e-6)


def test_files_and_fakes_agree(tmp_path):
    """The shapes above are those of a real file."""
    file = open_gguf(gguf_writer.write(tmp_path / "x.gguf", META, tiny_llama.tensors(META)))
    assert {n: t.shape for n, t in file.tensors.items()} == SHAPES
