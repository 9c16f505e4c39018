"""Every architecture against its NumPy model: random files with all options; steps, threads and rings change no bit."""

import numpy as np
import pytest
import tiny_gemma3
import tiny_llama
from reference_gemma3 import ReferenceGemma3
from reference_llama import ReferenceLlama
from sessions import session

from ikpy_llm import models
from ikpy_llm.engine.graph.graph import Graph
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.step.conversation import Cache
from ikpy_llm.errors import IkpyError, ModelFileError

TOKENS = np.random.default_rng(1).integers(0, tiny_llama.N_VOCAB, 700).tolist()


@pytest.fixture(scope="module")
def gemma3(folder):
    return tiny_gemma3.write(folder / "gemma3.gguf", ("Q8_0", "F16"))


QWEN2 = {"architecture": "qwen2", "rope__freq_base": 1e6}
CASES = {
    "qwen2": (QWEN2 | {"bias": True}, 1.5e-3),
    "qwen2, tied, 8 bits": (QWEN2 | {"bias": True, "tied": True, "types": ("Q8_0", "Q4_1")}, None),
    "qwen2, part of a head turns": (QWEN2 | {"rope__dimension_count": 8}, 1.5e-3),
    "gemma3": ({}, 1.5e-3),
    "gemma3, 8 bits": ({"types": ("Q8_0",)}, None),
    "gemma3, stretched": ({"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}, 1.5e-3),
    "gemma3, every second layer": ({"attention__sliding_window_pattern": 2, "rope__freq_base_swa": 3e4}, 1.5e-3),
    "gemma3, listed layers": ({"attention__sliding_window_pattern": [True, False, False, True], "n_layer": 4}, 1.5e-3),
    "gemma3, all layers see everything": ({"attention__sliding_window": None}, 1.5e-3),
    "gemma3, wide heads": ({"head_dim": 256, "n_layer": 2, "n_head_kv": 1}, 1.5e-3),
    "gemma3, scale in the file": ({"attention__scale": 0.3, "n_layer": 3}, 1.5e-3),
    "gemma3, 62 layers": ({"n_layer": 62, "n_embd": 64, "n_head": 4, "n_ff": 32}, 8e-3),
}
LONG = "qwen2", "qwen2, tied, 8 bits", "gemma3", "gemma3, 8 bits"  # longer than a chunk of attention


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model(folder, case):
    options, tolerance = CASES[case]
    writer, reference = (tiny_llama, ReferenceLlama) if "qwen2" in case else (tiny_gemma3, ReferenceGemma3)
    path = writer.write(folder / "case.gguf", **options)
    tokens = TOKENS[: 300 if case in LONG else 70]
    expected = reference(path, np.float16).logits(tokens)
    with session(path) as s:
        error = s.eval(tokens, all_logits=True) - expected
    if tolerance is None:  # quantized weights: not much further away than with the best 8-bit activations
        ideal = reference(path, np.float16, options["types"]).logits(tokens) - expected
        assert error.std() < 1.3 * ideal.std() and abs(error).max() < 1.3 * abs(ideal).max()
    else:
        assert abs(error).max() < tolerance * expected.std()


def steps(s, tokens, *sizes):
    """Logits of the last row of each step."""
    s.rewind(0)
    out, at = [], 0
    for n in sizes:
        out.append(s.eval(tokens[at : at + n])[0])
        at += n
    return np.array(out)


def test_steps_threads_and_rings_change_no_bit(gemma3):
    with session(gemma3, n_ctx=1024, swa_full=True, threads=1) as s:
        expected = s.eval(TOKENS, all_logits=True)
        assert {layer.n_cells for layer in s.kv.layers.values()} == {1024}
    for threads, n_ubatch in (2, 512), (3, 64), (1, 240):
        with session(gemma3, n_ctx=1024, threads=threads, n_ubatch=n_ubatch) as s:
            cells = [layer.n_cells for layer in s.kv.layers.values()]
            ring = 768 if n_ubatch == 512 else 256
            assert cells == [ring] * 5 + [1024, ring]
            np.testing.assert_array_equal(s.eval(TOKENS, all_logits=True), expected)
            sizes = 7, 1, 1, 80, 3, 200, 1, 150, 2, 1, 1, 240, 1
            np.testing.assert_array_equal(steps(s, TOKENS, *sizes), expected[np.cumsum(sizes) - 1])
            n = 300 if n_ubatch == 64 else 30
            np.testing.assert_array_equal(steps(s, TOKENS, *[1] * n), expected[:n])


def test_how_far_one_can_go_back(gemma3):
    with session(gemma3, n_ctx=1024, n_ubatch=64) as s:
        expected = s.eval(TOKENS, all_logits=True)
        first = 700 - 256 + tiny_gemma3.WINDOW - 1  # a token there sees the oldest cells that are still there
        for position in (699, 600, first + 1, first):
            s.rewind(position)
            np.testing.assert_array_equal(s.eval(TOKENS[position : position + 1])[0], expected[position])
        s.rewind(first)
        for position in (first - 1, 1):
            with pytest.raises(IkpyError, match=f"cannot go back to position {position}: layers with a sliding window"):
                s.rewind(position)
        assert s.position == first
        np.testing.assert_array_equal(s.eval(TOKENS[first:]), expected[-1:])
        s.rewind(0)
        np.testing.assert_array_equal(s.eval(TOKENS[:200]), expected[199:200])
        s.rewind(3)
        np.testing.assert_array_equal(s.eval(TOKENS[3:100]), expected[99:100])


def test_a_text_that_goes_back_too_far_is_read_again(gemma3):
    with session(gemma3, n_ctx=1024, n_ubatch=64) as s:
        cache = Cache(s)
        for tokens, n_new in (TOKENS, 700), (TOKENS[:650] + [1, 2], 2), (TOKENS[:300] + [3], 301):
            new = cache.reuse(tokens)
            assert len(new) == n_new
            got = cache.eval(new)
            with session(gemma3, n_ctx=1024) as fresh:
                np.testing.assert_array_equal(got, fresh.eval(tokens)[0])


def test_a_failed_step_leaves_no_position_whose_window_is_gone(gemma3, monkeypatch):
    with session(gemma3, n_ctx=1024, n_ubatch=64) as s:
        expected = s.eval(TOKENS[:100])
        step, seen = s._step, []

        def fails(*args):
            seen.append(args)
            if len(seen) == 6:
                raise IkpyError("non-finite value")
            return step(*args)

        monkeypatch.setattr(s, "_step", fails)
        with pytest.raises(IkpyError):
            s.eval(TOKENS[100:])
        assert s.position == 0
        np.testing.assert_array_equal(s.eval(TOKENS[:100]), expected)


def test_hidden_states_give_the_logits(folder, gemma3):
    reference = ReferenceGemma3(gemma3)
    with session(gemma3, n_ubatch=64) as s:
        logits = s.eval(TOKENS[:150], all_logits=True)
        s.rewind(0)
        hidden = s.hidden(TOKENS[:150])
        assert hidden.shape == (150, 64) and hidden.dtype == np.float32
        again = hidden @ reference.w["token_embd.weight"].T
        assert abs(again - logits).max() < 0.05 * logits.std()


def test_a_window_costs_no_more_than_itself(gemma3):
    with session(gemma3, n_ctx=1024) as s:
        program = s.program("gen")
        one = dict.fromkeys(("tokens", "outputs"), 1)
        rise = [program.cost(one, n + 1)[1] - program.cost(one, n)[1] for n in (2, 500)]
        row = 2 * 2 * 2 * 32  # bytes of a position's keys and values in a layer
        assert rise == [7 * row, row]
        assert s.kv.seen_bytes(500) == 500 * row + 6 * tiny_gemma3.WINDOW * row
        attend = next(r.cost for r in program.records if r.op == "attend")
        for rows, position in (1, 3), (1, 90), (5, 13), (40, 0), (40, 300), (3, 14):
            seen = sum(min(position + i + 1, tiny_gemma3.WINDOW) for i in range(rows))
            assert attend.of(rows, position)[0] == attend.flops_position * seen


REFUSED = {
    "attention.sliding_window_pattern": (0, "1 or more"),
    "final_logit_softcapping": (30.0, "accepted: 0.0"),
    "rope.scaling.type": ("longrope", "accepted: none, linear, yarn"),
    "attention.sliding_window": (-1, "accepted: 0 to"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_gemma3_refuses_what_it_would_run_wrongly(folder, key):
    value, why = REFUSED[key]
    path = tiny_gemma3.write(folder / "bad.gguf", **{key.replace(".", "__"): value})
    with pytest.raises(ModelFileError, match=why) as error:
        session(path)
    assert key in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", [[True, False], "x", 2.5])
def test_gemma3_refuses_odd_patterns(folder, pattern):
    path = tiny_gemma3.write(folder / "bad.gguf", attention__sliding_window_pattern=pattern)
    with pytest.raises(ModelFileError, match=r"sliding_window_pattern.*one per layer"):
        session(path)


@pytest.mark.parametrize("name", ["blk.3.attn_q_norm.weight", "blk.0.post_ffw_norm.weight", "rope_freqs.weight"])
def test_gemma3_has_exactly_its_tensors(name):
    meta = tiny_gemma3.meta()
    shapes = tiny_gemma3.shapes(meta)
    shapes |= {name: (16,)} if name not in shapes else {}
    if "rope" not in name:
        del shapes[name]
    with pytest.raises(ModelFileError, match=name):
        tensors = {n: type("Fake", (), {"name": n, "shape": s, "type_name": "F32"}) for n, s in shapes.items()}
        graph = Graph("x.gguf", tensors)
        models.builder(meta, "x.gguf")(graph, Params("x.gguf", "gemma3", meta))
        graph.check_all_claimed()
