"""Files of other people: what they have besides a model's own keys and tensors, and what of it is refused."""

import threading

import numpy as np
import pytest
import tiny_deepseek2
import tiny_gemma3
import tiny_llama
import tiny_model
import tiny_moe
from gguf_writer import U, string, write
from reference_llama import ReferenceLlama
from sessions import session

from ikpy_llm import models
from ikpy_llm.engine.file import known_keys
from ikpy_llm.errors import ModelFileError
from ikpy_llm.kernels.attention.layout import MAX_DIM

TOKENS = np.random.default_rng(5).integers(0, tiny_llama.N_VOCAB, 40).tolist()
WRITERS = {"llama": tiny_llama, "qwen3moe": tiny_moe, "deepseek2": tiny_deepseek2, "gemma3": tiny_gemma3}


def model(architecture, **more):
    """(metadata, tensors) of a tiny model."""
    writer = WRITERS.get(architecture, tiny_llama)
    m = writer.meta(**more) if writer is not tiny_llama else writer.meta(architecture=architecture, **more)
    return m, tiny_llama.random(writer.shapes(m), ("F32",), 0)


def logits(path, **options):
    with session(path, **options) as s:
        return s.eval(TOKENS, all_logits=True)


@pytest.fixture(scope="module")
def plain(folder):
    """Logits of each architecture's model as it is."""
    return {name: logits(write(folder / f"{name}.gguf", *model(name))) for name in WRITERS}


# Keys that converters write although their value changes nothing.
SAME = {
    "qwen3moe": {
        "expert_shared_feed_forward_length": 0,
        "expert_shared_count": 0,
        "expert_weights_norm": True,
        "expert_weights_scale": 1.0,
        "expert_gating_func": 1,
        "expert_group_count": 1,
        "leading_dense_block_count": 0,
        "nextn_predict_layers": 0,
        "hidden_activation": "silu",
        "moe_every_n_layers": 1,
    },
    "llama": {
        "expert_feed_forward_length": 1408,
        "expert_shared_feed_forward_length": 0,
        "expert_weights_scale": 2.5,
        "expert_gating_func": 2,
        "leading_dense_block_count": 2,
        "rope.dimension_sections": [0, 0, 0, 0],
        "rope.freq_base_swa": 10000.0,
        "rope.dimension_count_swa": 16,
        "attention.temperature_scale": 0.0,
        "attention.temperature_length": 8192,
        "attention.scale": 0.25,
        "attention.key_length_swa": 16,
        "classifier.output_labels": ["yes", "no"],
        "nextn_predict_layers": 0,
        "embedding_length_out": 64,
        "ssm.conv_kernel": 0,
        "logit_scale": 1.0,
        "hidden_activation": "silu",
    },
    "deepseek2": {"nextn_predict_layers": 0, "attention.indexer.top_k": 0, "rope.scaling.alpha": 0.0},
    "gemma3": {"hidden_activation": "gelu_pytorch_tanh", "attention.shared_kv_layers": 0, "altup.num_inputs": 1},
}


@pytest.mark.parametrize(("architecture", "key"), [(a, key) for a, keys in SAME.items() for key in keys])
def test_keys_whose_value_changes_nothing(folder, plain, caplog, architecture, key):
    m, tensors = model(architecture)
    path = write(folder / "same.gguf", m | {f"{architecture}.{key}": SAME[architecture][key]}, tensors)
    np.testing.assert_array_equal(logits(path), plain[architecture])
    assert not [r for r in caplog.records if "ignored" in r.message]


OTHERS = {
    "qwen3moe": {
        "expert_shared_count": (2, "accepted: 0"),
        "expert_gating_func": (3, "accepted: 0, 1"),
        "leading_dense_block_count": (1, "accepted: 0"),
        "router_logit_softcapping": (30.0, "accepted: 0.0"),
        "interleave_moe_layer_step": (2, "accepted: 0 or 1"),
    },
    "llama": {
        "rope.dimension_sections": ([11, 11, 10, 0], "accepted: 0"),
        "attention.temperature_scale": (0.1, "accepted: 0.0"),
        "attention.scale": (0.3, "accepted: 0.0 or 0.25"),
        "attention.value_scale": (0.5, "accepted: 0.0 or 1.0"),
        "full_attention_interval": (4, "accepted: 0 or 1"),
        "rope.freq_base_swa": (1e6, "accepted: 0.0 or 10000.0"),
        "ssm.state_size": (128, "accepted: 0"),
        "swin_norm": (True, "accepted: False"),
        "hidden_activation": ("gelu", "accepted: silu or swish"),
    },
    "gemma3": {"attention.shared_kv_layers": (2, "accepted: 0"), "hidden_activation": ("silu", "gelu_pytorch_tanh")},
}


@pytest.mark.parametrize(("architecture", "key"), [(a, key) for a, keys in OTHERS.items() for key in keys])
def test_keys_whose_value_would_change_the_result(folder, architecture, key):
    value, why = OTHERS[architecture][key]
    m, tensors = model(architecture)
    with pytest.raises(ModelFileError, match=why) as error:
        session(write(folder / "other.gguf", m | {f"{architecture}.{key}": value}, tensors))
    assert key in str(error.value) and "\n" not in str(error.value)


def test_every_key_that_engines_know_has_a_value_that_changes_nothing_or_is_refused(folder):
    """Nothing of the table is an unknown key; its values pass for architectures that do not read the key."""
    for architecture in models.architectures():
        p = type("P", (), {"n_embd": 64, "head_dim": 16, "v_dim": 16, "n_rot": 16, "rope_base": 1e4})
        for key in known_keys.NEUTRAL:
            assert isinstance(known_keys.neutral(key, p), tuple), (architecture, key)
    assert known_keys.neutral("something.new", p) is None
    assert not known_keys.HARMLESS & known_keys.NEUTRAL.keys()


def test_what_has_no_effect_is_named_in_one_warning(folder, plain, caplog):
    """A key no engine knows, text that is not UTF-8, biases of zeros in the types a file may have, dimensions of 1."""
    m, tensors = model("llama")
    m |= {"llama.something.new": 1, "llama.house_style": "x", "general.description": b"caf\xe9", "foo.bar": 3}
    m["general.tags"] = U(9, b"\x08\0\0\0\x01\0\0\0\0\0\0\0" + string(b"\xff"))
    minus_zero = np.full(64, -0.0, np.float32)
    tensors |= {
        "output.bias": ("F32", (70,), bytes(280)),
        "output_norm.bias": ("F32", (64,), minus_zero.tobytes()),
        "blk.0.attn_norm.bias": ("F16", (64,), bytes(128)),
        "blk.1.ffn_norm.bias": ("BF16", (64,), bytes(128)),
        "blk.1.attn_q_norm.bias": ("Q8_0", (64,), bytes(68)),
    }
    tensors = {name: (kind, (1, 1, *shape)[-4:], raw) for name, (kind, shape, raw) in tensors.items()}
    path = write(folder / "odd.gguf", m, tensors)
    np.testing.assert_array_equal(logits(path), plain["llama"])
    (said,) = [r for r in caplog.records if r.levelname == "WARNING"]
    for name in ("llama.something.new", "llama.house_style", "general.description", "blk.1.attn_q_norm.bias"):
        assert name in said.message
    assert "output.bias" not in said.message  # the product adds it
    for bits in (0x1E3CE508, 0x7F800001, 0xFFC00000):  # 1e-20, a signalling NaN, which NumPy warns of, and a quiet one
        tensors["output_norm.bias"] = ("F32", (64,), np.full(64, bits, np.uint32).tobytes())
        with pytest.raises(ModelFileError, match=r"1 tensors are not part .*: 'output_norm.bias'"):
            session(write(folder / "bias.gguf", m, tensors))


@pytest.mark.parametrize("architecture", WRITERS)
def test_dimensions_of_one(folder, plain, architecture):
    """Some writers give every tensor four dimensions, others take those of 1 away."""
    m, tensors = model(architecture)
    wide = {name: (kind, (1, 1, 1, *shape)[-4:], raw) for name, (kind, shape, raw) in tensors.items()}
    np.testing.assert_array_equal(logits(write(folder / "wide.gguf", m, wide)), plain[architecture])


def test_text_that_matters_has_to_be_utf8(folder):
    m, tensors = model("llama")
    for key in ("tokenizer.chat_template", "tokenizer.ggml.model"):
        with pytest.raises(ModelFileError, match=f"'{key}'.*UTF-8"):
            session(write(folder / "text.gguf", m | {key: b"\xff"}, tensors))
    with pytest.raises(ModelFileError, match=r"rope\.scaling\.type"):
        session(write(folder / "text.gguf", m | {"llama.rope.scaling.type": b"yarn\xff"}, tensors))


@pytest.mark.parametrize("flash_attn", [True, False])
def test_the_widest_heads_fit_the_stack_of_a_thread(folder, flash_attn):
    path = tiny_llama.write(folder / "wide.gguf", n_head=2, n_head_kv=1, head_dim=MAX_DIM, n_layer=1)
    expected, got = ReferenceLlama(path, np.float16).logits(TOKENS), []
    before = threading.stack_size(2 << 20)  # bytes, as where the system sets no limit
    try:
        thread = threading.Thread(target=lambda: got.append(logits(path, flash_attn=flash_attn)))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert abs(got[0] - expected).max() < 1.5e-3 * expected.std()


def test_on_the_command_line(ikpy, tmp_path):
    words = "-p", "the end", "-n", "4", "--temp", "0", "-t", "1"
    plain = ikpy("run", "-m", tiny_model.write(tmp_path / "plain.gguf"), *words)
    same = {"llama.expert_feed_forward_length": 0, "llama.rope.dimension_sections": [0, 0, 0, 0]}
    done = ikpy("run", "-m", tiny_model.write(tmp_path / "same.gguf", same), *words)
    assert (done.returncode, done.stdout) == (0, plain.stdout) and "ignored" not in done.stderr
    odd = {"llama.something.new": 1, "general.description": b"caf\xe9"}
    done = ikpy("run", "-m", tiny_model.write(tmp_path / "odd.gguf", odd), *words)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    (line,) = [line for line in done.stderr.splitlines() if "ignored" in line]
    assert "llama.something.new" in line and "general.description" in line
    done = ikpy(
        "run", "-m", tiny_model.write(tmp_path / "other.gguf", {"llama.attention.temperature_scale": 0.1}), *words
    )
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert "attention.temperature_scale" in done.stderr
    wide = tiny_model.write(tmp_path / "wide.gguf", {"llama.attention.key_length": 1 << 15})
    for command in ("run", "bench"):
        done = ikpy(command, "-m", wide, "-p", "4")
        assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1, done.stderr
        assert "llama.attention.key_length' is 32768; accepted: 1 to 4096" in done.stderr
