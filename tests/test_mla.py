"""DeepSeek's latent attention and experts against their NumPy form, in every mode of -mla."""

import numpy as np
import pytest
import tiny_deepseek2
import tiny_llama
from gguf_writer import write
from reference_deepseek2 import ReferenceDeepseek2
from sessions import session
from tiny_deepseek2 import V3

from ikpy_llm.errors import IkpyError, ModelFileError

TOKENS = np.random.default_rng(3).integers(0, tiny_deepseek2.N_VOCAB, 130).tolist()
# Of the logits' deviation, on average: f16 cache; activations of 8 bits, which choose other experts in some rows.
EXACT, CODES = 1e-3, 0.12

# As converters write Youtu-LLM.
NO_EXPERTS = {"n_dense": 3, "n_expert": None, "n_used": None, "n_shared": 0, "n_ff_expert": 96, "layout": "k_b"}
NO_EXPERTS |= {"expert_weights_scale": 1.0, "expert_weights_norm": True, "attention__q_lora_rank": 48}

CASES = {
    "v2": ({"n_shared": 2, "types": ("F32", "F16")}, EXACT),
    "v3": (V3, EXACT),
    "v3, k_b and v_b": (V3 | {"layout": "k_b"}, EXACT),
    "v2, k_b and v_b": ({"layout": "k_b", "types": ("BF16",)}, EXACT),
    "no shared expert, dense layers only at the start": ({"n_shared": 0, "n_dense": 2, "n_used": 1}, EXACT),
    "all layers have experts, all are used": ({"n_dense": 0, "n_layer": 2, "n_expert": 4, "n_used": 4}, EXACT),
    "8 bits": (V3 | {"types": ("Q8_0",)}, CODES),
    "8 bits, k_b and v_b": ({"layout": "k_b", "types": ("Q8_0",)}, CODES),
    "v3, no word on how experts are weighted": (V3 | {"expert_gating_func": None, "bias": True}, EXACT),
    "v3, by softmax with a bias": (V3 | {"expert_gating_func": 1, "bias": True, "seed": 2}, EXACT),
    "yarn without mscale_all_dim": (V3 | {"rope__scaling__yarn_log_multiplier": None}, EXACT),
    "yarn with a factor": (V3 | {"rope__scaling__yarn_attn_factor": 1.3}, EXACT),
    "yarn with a factor alone": (
        V3 | {"rope__scaling__yarn_attn_factor": 0.8, "rope__scaling__yarn_log_multiplier": 0.0},
        EXACT,
    ),
    "all three of attn_kv_b, attn_k_b, attn_v_b": (V3 | {"layout": "all"}, EXACT),
    "no experts": (NO_EXPERTS, EXACT),
    "no experts, not even a word on them": (
        {"n_dense": None, "n_expert": None, "n_used": None, "n_shared": None, "n_ff_expert": None},
        EXACT,
    ),
    "heads of 40 and 16, and 32": (V3 | {"sizes": {"nope": 40}, "seed": 1}, EXACT),
    "heads of 40 and 24, and 40": (
        V3 | {"sizes": {"nope": 40, "n_rot": 24, "v_dim": 40}, "layout": "k_b", "seed": 1},
        EXACT,
    ),
    "heads of 24 and 8, and 20": ({"sizes": {"nope": 24, "n_rot": 8, "v_dim": 20}, "types": ("F16",)}, EXACT),
    "heads of 100 and 28, and 72": ({"sizes": {"nope": 100, "n_rot": 28, "v_dim": 72}, "types": ("BF16",)}, EXACT),
    "few bits": ({"types": ("Q5_1", "Q4_0", "Q4_1")}, CODES),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mla")


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model(folder, case):
    """In modes 0 to 2 prompt, parts, single tokens and other threads give the same bits; in 3 tokens are as in 1."""
    options, tolerance = CASES[case]
    path = tiny_deepseek2.write(folder / "case.gguf", **options)
    expected = ReferenceDeepseek2(path).logits(TOKENS)
    results, one_by_one = [], []
    for mla in range(4):
        with session(path, mla=mla, n_ctx=256, amb=0) as s:
            results.append(s.eval(TOKENS, all_logits=True))
            s.rewind(0)
            one_by_one.append(np.concatenate([s.eval([t]) for t in TOKENS[:30]]))
            s.rewind(0)
            parts = np.concatenate([s.eval(TOKENS[i : i + n], all_logits=True) for i, n in ((0, 5), (5, 70), (75, 2))])
        error = abs(results[-1] - expected)
        assert error.mean() < tolerance * expected.std(), mla
        np.testing.assert_array_equal(parts, results[-1][:77])
        if mla < 3:
            np.testing.assert_array_equal(one_by_one[-1], results[-1][:30])
    np.testing.assert_array_equal(results[3], results[2])
    np.testing.assert_array_equal(one_by_one[3][0], one_by_one[1][0])
    assert abs(one_by_one[3] - expected[:30]).mean() < tolerance * expected.std()
    for mla in (1, 2):
        with session(path, mla=mla, n_ctx=256, threads=3, n_ubatch=33) as s:
            np.testing.assert_array_equal(s.eval(TOKENS, all_logits=True), results[mla])
    for n_ubatch in 1, 3:  # -mla 3: prompts are prompts however few tokens a step has
        with session(path, mla=3, n_ctx=256, n_ubatch=n_ubatch) as s:
            np.testing.assert_array_equal(s.eval(TOKENS[:20], all_logits=True), results[3][:20])
            s.rewind(0)
            np.testing.assert_array_equal(s.eval(TOKENS[:20])[0], results[3][19])


def test_groups_of_heads_and_rows_of_the_file(folder):
    """A small -amb expands a few heads at a time; weights that are not woven give the same bits."""
    path = tiny_deepseek2.write(folder / "groups.gguf", types=("Q8_0", "Q4_0"))
    with session(path, mla=2, n_ctx=4096) as s:
        expected = s.eval(TOKENS, all_logits=True)
    for options in ({"amb": 1}, {"amb": 4}, {"repack": False}):
        with session(path, mla=2, n_ctx=4096, **options) as s:
            np.testing.assert_array_equal(s.eval(TOKENS, all_logits=True), expected)
    n_attend = []
    for amb in (0, 1, 4):
        with session(path, mla=3, n_ctx=4096, amb=amb) as s:
            n_attend.append(sum(r.op == "attend" for r in s.program("prompt").records) // 3)
            assert sum(r.op == "attend" for r in s.program("gen").records) == 3
    assert n_attend == [1, 4, 2]


def test_groups_of_heads_end_where_panels_do(folder):
    """Rows of a head that are no multiple of 16: a small -amb expands as many heads at a time as fill whole panels."""
    path = tiny_deepseek2.write(folder / "odd.gguf", sizes={"n_head": 8, "nope": 28, "v_dim": 40}, types=("F16",))
    results, n_attend = [], []
    for options in ({"amb": 0}, {"amb": 1}, {"amb": 16}, {"amb": 1, "repack": False}):
        with session(path, mla=2, n_ctx=4096, **options) as s:
            results.append(s.eval(TOKENS, all_logits=True))
            n_attend.append(sum(r.op == "attend" for r in s.program("prompt").records) // 3)
    assert n_attend == [1, 2, 1, 2]
    for got in results[1:]:
        np.testing.assert_array_equal(got, results[0])


def test_what_the_cache_takes(folder):
    path = tiny_deepseek2.write(folder / "cache.gguf")
    sizes = tiny_deepseek2.SIZES
    whole = sizes["n_head"] * (sizes["nope"] + sizes["n_rot"] + sizes["v_dim"])
    for mla, width in (0, whole), (1, sizes["rank"] + sizes["n_rot"]), (3, sizes["rank"] + sizes["n_rot"]):
        with session(path, mla=mla) as s:
            assert s.kv.n_bytes == 3 * 512 * 2 * width


def test_each_layout_claims_what_it_needs(folder, caplog):
    """In mode 1 attn_kv_b is only a source and not woven; what was computed stands beside the file's tensors."""
    path = tiny_deepseek2.write(folder / "layout.gguf", types=("Q4_0",))
    with caplog.at_level("INFO", "ikpy.session"), session(path, mla=1) as s:
        said = [r.message for r in caplog.records if "at load" in r.message]
        assert said == ["attn_k_b and attn_v_b: not in the file, computed at load"]
        woven = {t.name: t.type_name for t in s.weights.matrices if ".attn_" in t.name and "blk.0" in t.name}
        assert "blk.0.attn_kv_b.weight" not in woven
        assert (woven["blk.0.attn_k_b.weight"], woven["blk.0.attn_v_b.weight"]) == ("Q8_0", "Q4_0")
        assert "blk.0.attn_k_b.weight" not in s.file.tensors
    for mla in (0, 2):
        with session(path, mla=mla) as s:
            assert not {t.name for t in s.weights.matrices} & {"blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"}


REFUSED = {
    "attention.kv_lora_rank": (72, "kv_lora_rank' is 72; accepted: multiples of 16"),
    "attention.head_count_kv": (2, "accepted: 1, 4"),
    "rope.dimension_count": (0, "an even number up to 256"),
    "expert_gating_func": (3, "accepted: 0, 1, 2"),
    "expert_group_count": (3, "no multiple"),
    "expert_group_used_count": (9, "1 to the number of groups, 4"),
    "expert_weights_norm": (1, "true or false"),
    "attention.key_length": (64, "accepted: 80 with key_length_mla, or the size of a key|implies|imply"),
    "attention.indexer.head_count": (4, "accepted: 0"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_metadata_that_would_be_run_wrongly_is_refused(folder, key):
    value, why = REFUSED[key]
    meta = tiny_deepseek2.meta(**V3)
    tensors = tiny_llama.random(tiny_deepseek2.shapes(meta), ("F32",), 0)
    path = write(folder / "bad.gguf", meta | {"deepseek2." + key: value}, tensors)
    with pytest.raises(ModelFileError, match=why) as error:
        session(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["kv_b", "k_b"])
def test_missing_parts_are_named(folder, layout):
    meta = tiny_deepseek2.meta(layout=layout)
    tensors = tiny_llama.random(tiny_deepseek2.shapes(meta, layout), ("F32",), 0)
    del tensors["blk.1.attn_kv_b.weight" if layout == "kv_b" else "blk.1.attn_v_b.weight"]
    with pytest.raises(ModelFileError, match=r"'blk.1.attn_kv_b.weight' of shape \[256, 64\] is missing"):
        session(write(folder / "part.gguf", meta, tensors))


def test_modes_there_are_not(folder):
    path = tiny_deepseek2.write(folder / "modes.gguf")
    with pytest.raises(IkpyError, match="mla is 4; a whole number from 0 to 3 is accepted"):
        session(path, mla=4)
    with pytest.raises(IkpyError, match="amb is -1"):
        session(path, amb=-1)


@pytest.mark.parametrize(("ser", "limits"), [("1,0.6", (1, 0.6)), ("2,1", (2, 1.0)), ("-1,0", (0, 0)), ("1,0", (0, 0))])
def test_fewer_experts(folder, ser, limits):
    path = tiny_deepseek2.write(folder / "ser.gguf", **V3)
    reference = ReferenceDeepseek2(path)
    reference.ser = limits
    expected = reference.logits(TOKENS)
    with session(path, ser=ser) as s:
        got = s.eval(TOKENS, all_logits=True)
        assert abs(got - expected).mean() < EXACT * expected.std()
        assert s.experts_per_token == (2 if ser == "2,1" else 3 if limits[0] == 0 else pytest.approx(2, abs=0.9))
        s.rewind(0)
        one_by_one = np.concatenate([s.eval([t]) for t in TOKENS[:30]])
        assert abs(one_by_one - expected[:30]).mean() < EXACT * expected.std()


@pytest.mark.parametrize("ser", ["x", "1", "2,1.5", "-3,0.5", "1,2,3"])
def test_limits_that_are_refused(folder, ser):
    with pytest.raises(IkpyError, match=r"ser is .*Kmin,t"):
        session(tiny_deepseek2.write(folder / "ser.gguf"), ser=ser)
