"""Other layouts of the same numbers: q, k and v in one matrix, gate and up in one, NextN blocks behind the model."""

import numpy as np
import pytest
import tiny_deepseek2
import tiny_gemma3
import tiny_llama
import tiny_moe
from gguf_writer import write
from sessions import session
from test_relatives import model as relative

from ikpy_llm import models
from ikpy_llm.errors import ModelFileError

TOKENS = np.random.default_rng(6).integers(0, tiny_llama.N_VOCAB, 50).tolist()


def model(architecture, kind="F32", **more):
    """(metadata, tensors) of a tiny model of any architecture, with biases of q, k and v where it may have them."""
    if architecture == "gemma3":
        m = tiny_gemma3.meta(n_layer=2, **more)
        shapes = tiny_gemma3.shapes(m)
    elif architecture.endswith("moe"):
        m = tiny_moe.meta(architecture=architecture, **more)
        shapes = tiny_moe.shapes(m)
    elif architecture in ("llama", "qwen2", "qwen3"):
        m = tiny_llama.meta(architecture=architecture, **more)
        shapes = tiny_llama.shapes(m, bias=True)
        if architecture == "qwen3":
            shapes |= {f"blk.{i}.attn_{x}_norm.weight": (16,) for i in range(2) for x in "qk"}
    else:
        m, shapes = relative(architecture, n_layer=2, **more)
    return m, tiny_llama.random(shapes, (kind,), 0)


def steps(path, **options):
    """Logits of a prompt, and of its first tokens one by one."""
    with session(path, **options) as s:
        whole = s.eval(TOKENS, all_logits=True)
        s.rewind(0)
        return whole, np.concatenate([s.eval([t]) for t in TOKENS[:8]])


def joined(tensors, names, to):
    """The tensors with each layer's `names` as one, rows below each other."""
    out, parts = {}, {}
    for full, (kind, shape, raw) in tensors.items():
        block, _, rest = full.partition(".attn_") if ".attn_" in full else full.partition(".ffn_")
        name, _, suffix = rest.rpartition(".")
        if name in names:
            parts.setdefault((block, suffix), {})[name] = (kind, shape, raw)
        else:
            out[full] = (kind, shape, raw)
    for (block, suffix), part in parts.items():
        kinds, shapes, raws = zip(*(part[name] for name in names), strict=True)
        rows = sum(shape[0] for shape in shapes)
        out[f"{block}.{to}.{suffix}"] = (kinds[0], (rows, *shapes[0][1:]), b"".join(raws))
    return out


WITH_QKV = [name for name in models.architectures() if name not in ("deepseek2", "phi3")]


@pytest.mark.parametrize("architecture", WITH_QKV)
def test_q_k_and_v_in_one_matrix(folder, architecture):
    """Every architecture that has them apart gives the same bits with them in one, the biases too."""
    m, tensors = model(architecture.replace("_b1_58", "-b1.58").replace("_25", "-25"))
    apart = write(folder / "apart.gguf", m, tensors)
    fused = joined(tensors, ("q", "k", "v"), "attn_qkv")
    assert not any(".attn_q.weight" in name for name in fused)
    path = write(folder / "fused.gguf", m, fused)
    for options in ({}, {"repack": False}):
        expected = steps(apart, **options)
        for got, wanted in zip(steps(path, threads=3, n_ubatch=13, **options), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    for got, wanted in zip(steps(path, no_fusion="all"), steps(apart), strict=True):
        np.testing.assert_array_equal(got, wanted)


ODD = {  # cuts inside a panel
    "llama, heads": ("llama", {"n_head": 5, "n_head_kv": 1, "head_dim": 24, "n_embd": 96}, ("q", "k", "v"), "attn_qkv"),
    "qwen2, n_ff": ("qwen2", {"n_ff": 40}, ("gate", "up"), "ffn_up"),
    "glm4, n_ff": ("glm4", {"n_ff": 40}, (), ""),
    "phi3, n_ff": ("phi3", {"n_ff": 40}, (), ""),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_parts_that_begin_inside_a_panel(folder, case, kind):
    architecture, sizes, names, to = ODD[case]
    m, tensors = model(architecture, kind, **sizes)
    if not names:  # this architecture has them in one
        n = m[f"{architecture}.feed_forward_length"]
        apart = dict(tensors)
        for i in range(2):
            _, (_, columns), raw = apart.pop(f"blk.{i}.ffn_up.weight")
            for j, name in enumerate(("gate", "up")):
                part = raw[j * len(raw) // 2 : (j + 1) * len(raw) // 2]
                apart[f"blk.{i}.ffn_{name}.weight"] = (kind, (n, columns), part)
    else:
        apart, tensors = tensors, joined(tensors, names, to)
    if to == "ffn_up":  # gate comes first in it, under the name of the other
        tensors = {name: t for name, t in tensors.items() if "ffn_gate" not in name}
    apart = write(folder / "apart.gguf", m, apart)
    path = write(folder / "joined.gguf", m, tensors)
    for options in ({}, {"repack": False}):
        for got, wanted in zip(steps(path, threads=3, **options), steps(apart, **options), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_gates_of_experts_above_their_other_half(folder, kind):
    m, tensors = model("qwen3moe", kind)
    fused = dict(tensors)
    for i in range(2):
        gate, up = (fused.pop(f"blk.{i}.ffn_{name}_exps.weight") for name in ("gate", "up"))
        n, rows, k = gate[1]
        halves = [np.frombuffer(raw, np.uint8).reshape(n, rows, -1) for _, _, raw in (gate, up)]
        fused[f"blk.{i}.ffn_gate_up_exps.weight"] = (kind, (n, 2 * rows, k), np.concatenate(halves, 1).tobytes())
    apart, path = write(folder / "apart.gguf", m, tensors), write(folder / "fused.gguf", m, fused)
    for options in ({}, {"repack": False}):
        for got, wanted in zip(steps(path, **options), steps(apart, **options), strict=True):
            np.testing.assert_array_equal(got, wanted)


def nextn(m, tensors, architecture, per_layer=()):
    """The same model with a block of its own behind it that drafts tokens, as converters write it."""
    n = m[f"{architecture}.block_count"]
    last = {name: t for name, t in tensors.items() if name.startswith(f"blk.{n - 1}.")}
    more = {name.replace(f"blk.{n - 1}.", f"blk.{n}."): t for name, t in last.items()}
    n_embd = m[f"{architecture}.embedding_length"]
    more[f"blk.{n}.nextn.eh_proj.weight"] = ("F32", (n_embd, 2 * n_embd), bytes(8 * n_embd**2))
    for name in ("enorm", "hnorm", "shared_head_norm"):
        more[f"blk.{n}.nextn.{name}.weight"] = ("F32", (n_embd,), np.ones(n_embd, np.float32).tobytes())
    lists = {f"{architecture}.{key}": [m[f"{architecture}.{key}"]] * n + [0] for key in per_layer}
    counts = {f"{architecture}.block_count": n + 1, f"{architecture}.nextn_predict_layers": 1}
    return m | counts | lists, tensors | more


@pytest.mark.parametrize("architecture", ["deepseek2", "glm4", "qwen3moe", "gemma3"])
def test_nextn_blocks_are_left_unread(folder, caplog, architecture):
    if architecture == "deepseek2":
        m = tiny_deepseek2.meta(**tiny_deepseek2.V3)
        tensors = tiny_llama.random(tiny_deepseek2.shapes(m), ("F32",), 0)
    else:
        m, tensors = model(architecture)
    expected = steps(write(folder / "plain.gguf", m, tensors))
    more_m, more = nextn(m, tensors, architecture, ("attention.head_count_kv", "feed_forward_length"))
    n = m[f"{architecture}.block_count"]
    without_key = {k: v for k, v in more_m.items() if "nextn" not in k}
    dropped = {name: t for name, t in more.items() if not name.startswith(f"blk.{n}.")}
    for changed in ((more_m, more), (without_key, more), (more_m, dropped)):
        caplog.clear()
        with caplog.at_level("INFO", "ikpy.session"):
            got = steps(write(folder / "nextn.gguf", *changed))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert [r.message for r in caplog.records if "NextN" in r.message][:1] == [
            f"NextN block {n}, for drafting tokens: not read"
        ]


def test_blocks_that_draft_nothing_are_the_models_own(folder):
    """A key from the configuration alone takes no layer away, and a block in the middle is no NextN block."""
    m, tensors = model("qwen3")
    expected = steps(write(folder / "plain.gguf", m, tensors))
    got = steps(write(folder / "key.gguf", m | {"qwen3.nextn_predict_layers": 1}, tensors))
    np.testing.assert_array_equal(got[0], expected[0])
    odd = tensors | {"blk.0.nextn.enorm.weight": ("F32", (64,), bytes(256))}
    with pytest.raises(ModelFileError, match="1 tensors are not part of the model's definition"):
        session(write(folder / "odd.gguf", m, odd))
