"""Tokens in, logits out: against the NumPy model, for all types, threads and ways to cut a sequence into steps."""

import itertools

import gguf_writer
import numpy as np
import pytest
import tiny_llama
from reference_llama import ReferenceLlama
from sessions import session

from ikpy_llm.engine.step import weights as weights_module
from ikpy_llm.errors import IkpyError, ModelFileError
from ikpy_llm.kernels.quants import table
from ikpy_llm.kernels.run import free_memory

TOKENS = np.random.default_rng(1).integers(0, tiny_llama.N_VOCAB, 300).tolist()


@pytest.fixture(scope="module")
def path(folder):
    """A small quantized model."""
    return tiny_llama.write(folder / "q8.gguf", types=("Q8_0",))


# largest logit error allowed, in standard deviations of the logits: float types differ by rounding and the f16 cache,
# the others by activations of 8 bits
CASES = {
    "F32": ({"types": ("F32",)}, 1.5e-3),
    "F16": ({"types": ("F16",), "bias": True}, 1.5e-3),
    "BF16": ({"types": ("BF16",), "tied": True}, 1.5e-3),
    "freqs": ({"types": ("F32",), "freqs": True}, 1.5e-3),
    "linear rope": ({"types": ("F32",), "rope__scaling__factor": 4.0, "rope__scaling__type": "linear"}, 1.5e-3),
    "part of a head turns": ({"types": ("F32",), "rope__dimension_count": 8}, 1.5e-3),
    "one head": ({"types": ("F32",), "n_head": 1, "n_head_kv": 1, "head_dim": 64}, 1.5e-3),
    "many heads": ({"types": ("F32",), "n_head": 12, "n_head_kv": 3, "head_dim": 16}, 1.5e-3),
    "odd widths": (
        {"types": ("F16", "F32", "BF16"), "n_embd": 75, "n_ff": 97, "n_head": 3, "n_head_kv": 1, "head_dim": 20},
        1.5e-3,
    ),
    "odd vocabulary and width": ({"types": ("Q8_0",), "n_embd": 96, "n_ff": 160}, 0.2),
    "Q4_0 Q4_1 Q5_0 Q5_1": ({"types": ("Q4_0", "Q4_1", "Q5_0", "Q5_1"), "bias": True}, 0.2),
    "all at once": ({"types": ("Q8_0", "F16", "Q4_0", "Q4_1", "Q5_0"), "tied": True}, 0.2),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model(folder, case):
    options, tolerance = CASES[case]
    path = tiny_llama.write(folder / "case.gguf", **options)
    expected = ReferenceLlama(path, np.float16).logits(TOKENS)
    with session(path) as s:
        got = s.eval(TOKENS, all_logits=True)
    assert got.dtype == np.float32 and got.shape == (len(TOKENS), tiny_llama.N_VOCAB)
    assert abs(got - expected).max() < tolerance * expected.std()


@pytest.mark.slow
def test_k_quants(folder):
    """The gguf package does not write these types, but any bytes are a model: random ones, the scales made small."""
    rng, m = np.random.default_rng(2), tiny_llama.meta(n_embd=256, n_ff=512, n_head=4, head_dim=64)
    tensors, kinds = tiny_llama.tensors(m), (("Q4_K", 1e-4), ("Q5_K", 5e-5), ("Q6_K", 4e-5))
    for i, (name, (_, shape, _)) in enumerate(tensors.items()):
        if len(shape) == 2:
            name_of, d = kinds[i % 3]
            info = table.by_name(name_of)
            blocks = rng.integers(0, 256, (shape[0] * shape[1] // 256, info.bytes), np.uint8)
            halves = blocks[:, -2:] if info.name == "Q6_K" else blocks[:, :4]  # d, or d and dmin
            halves[:] = np.full((len(blocks), halves.shape[1] // 2), d, np.float16).view(np.uint8)
            tensors[name] = (info.name, shape, blocks.tobytes())
    path = gguf_writer.write(folder / "k.gguf", m, tensors)
    expected = ReferenceLlama(path, np.float16).logits(TOKENS)
    with session(path) as s:
        assert abs(s.eval(TOKENS, all_logits=True) - expected).mean() < 0.03 * expected.std()


def steps(s, *sizes):
    """Logits of the last row of each step."""
    s.rewind(0)
    out, at = [], 0
    for n in sizes:
        out.append(s.eval(TOKENS[at : at + n])[0])
        at += n
    return np.array(out)


@pytest.mark.parametrize("types", [("Q8_0",), ("F16",), ("Q4_1", "F32")], ids=str)
def test_results_do_not_depend_on_threads_or_steps(folder, types):
    path = tiny_llama.write(folder / "threads.gguf", types=types)
    results = []
    for threads in (1, 2, 3):
        with session(path, threads=threads, n_ubatch=64) as s:
            results.append(s.eval(TOKENS, all_logits=True))
            rows = np.cumsum([7, 1, 1, 80, 1, 200]) - 1
            np.testing.assert_array_equal(steps(s, 7, 1, 1, 80, 1, 200), results[-1][rows[:6]])
            np.testing.assert_array_equal(steps(s, *[1] * 40), results[-1][:40])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_prompts_may_have_threads_of_their_own(path, monkeypatch):
    with session(path) as s:
        expected = steps(s, 80, 1, 1)
    with session(path, threads=1, threads_batch=3) as s:
        used = []
        for n, pool in s._pools.items():
            run = pool.run
            monkeypatch.setattr(pool, "run", lambda *words, n=n, run=run: (used.append(n), run(*words)))
        np.testing.assert_array_equal(steps(s, 80, 1, 1), expected)
        assert used == [3, 1, 1] and (s.n_threads, s.n_threads_batch) == (1, 3)
    with pytest.raises(IkpyError, match="closed"):
        s.eval([1])


@pytest.mark.parametrize(("types", "tolerance"), [(("Q8_0", "Q4_1", "Q4_0"), 0), (("F16", "F32"), 1e-5)], ids=str)
def test_weights_left_in_the_file_give_the_same_bits(folder, types, tolerance):
    """Float types add in another order then."""
    path = tiny_llama.write(folder / "rows.gguf", types=types, tied=True, bias=True)
    with session(path) as packed, session(path, repack=False) as plain:
        assert packed.weights.is_packed and not plain.weights.is_packed
        for n in (30, 1, 1):
            assert abs(packed.eval(TOKENS[:n]) - plain.eval(TOKENS[:n])).max() <= tolerance


def test_rewind_forgets(path):
    with session(path) as s:
        first = s.eval(TOKENS[:50])
        s.eval(TOKENS[100:150])
        s.rewind(40)
        assert s.position == 40
        np.testing.assert_array_equal(s.eval(TOKENS[40:50]), first)
        with pytest.raises(IkpyError, match="cannot go back to position 51"):
            s.rewind(51)


def test_a_full_context_is_an_error_and_changes_nothing(path):
    with session(path, n_ctx=256) as s:
        s.eval(TOKENS[:200])
        with pytest.raises(IkpyError, match="context of 256 positions is full: 200 are used, 57 more"):
            s.eval(TOKENS[:57])
        assert s.position == 200
        s.eval(TOKENS[:56])
        with pytest.raises(IkpyError, match="is full"):
            s.eval([1])


@pytest.mark.parametrize("tokens", [[-1], [tiny_llama.N_VOCAB], [1, 2, 1 << 40], [], [[1]], [1.5], ["a"]], ids=str)
def test_bad_tokens_are_errors(path, tokens):
    with session(path) as s, pytest.raises(IkpyError, match="token"):
        s.eval(tokens)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_rows_of_the_file_give_the_bits_of_panels(folder, name):
    """Woven or not, in steps of every size, by any number of threads; widths that fill no vector."""
    path, tokens = (
        tiny_llama.write(folder / f"{name}.gguf", types=(name,), n_embd=44, head_dim=12, n_ff=37),
        TOKENS[:40],
    )
    with session(path, threads=1) as s:
        wanted = s.eval(tokens, all_logits=True)
    for threads, repack in itertools.product((1, 2, 3), (False, True)):
        with session(path, threads=threads, repack=repack) as s:
            for n in range(1, 41):
                s.rewind()
                y = np.concatenate([s.eval(tokens[i : i + n], all_logits=True) for i in range(0, 40, n)])
                assert y.tobytes() == wanted.tobytes(), (threads, repack, n)
            s.rewind()
            y = np.concatenate([s.eval([token]) for token in tokens])  # generation's own program
            assert y.tobytes() == wanted.tobytes(), (threads, repack)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["blk.1.attn_norm.weight", "token_embd.weight", "blk.0.ffn_down.weight"])
def test_non_finite_values_fail_the_request(folder, where, value):
    """Weights that are not finite are named, those of the embedding when a token has them; others that are only too
    large for what is computed with them fail the request.
    """
    m = tiny_llama.meta()
    tensors = tiny_llama.tensors(m)
    kind, shape, raw = tensors[where]
    for size in (value,) if where == "token_embd.weight" else (value, 3e38):  # its rows are only normed
        data = np.full(np.frombuffer(raw, np.float32).shape, size, np.float32)
        tensors[where] = (kind, shape, data.tobytes())
        path = gguf_writer.write(folder / "nan.gguf", m, tensors)
        named = f"nan.gguf: tensor '{where}' .F32. has the value"
        if not np.isfinite(size) and where != "token_embd.weight":
            with pytest.raises(ModelFileError, match=f"{named} {size} at "):
                session(path)
            continue
        with session(path) as s:
            for tokens in ([1], [1, 2, 3]):
                message = "non-finite value while computing positions 0 to" if np.isfinite(size) else named
                with pytest.raises(IkpyError, match=message):
                    s.eval(tokens)
                assert s.position == 0


def test_context_defaults(folder, path):
    with session(path, n_ctx=None) as s:
        assert s.n_ctx == 512
    with session(path, n_ctx=0) as s:
        assert s.n_ctx == 512
    long = tiny_llama.write(folder / "long.gguf", context_length=100_000)
    with session(long, n_ctx=None) as s:
        assert s.n_ctx == 4096
    with session(long, n_ctx=300) as s:
        assert s.n_ctx == 512  # whole units of 256


def test_a_context_beyond_the_models_is_a_warning(folder, caplog):
    short = tiny_llama.write(folder / "short.gguf", context_length=100)
    with caplog.at_level("WARNING"), session(short, n_ctx=300) as s:
        assert s.n_ctx == 512 and np.isfinite(s.eval(TOKENS, all_logits=True)).all()
    assert "context of 300 positions: the model was trained for 100" in [r.message for r in caplog.records]
    caplog.clear()
    with caplog.at_level("WARNING"), session(short, n_ctx=0) as s:
        assert s.n_ctx == 256 and not [r for r in caplog.records if "trained" in r.message]


def test_a_context_that_does_not_fit_is_an_error(folder):
    path = tiny_llama.write(folder / "huge.gguf", context_length=1 << 31)
    with pytest.raises(IkpyError, match=r"needs \d+ MB for the KV cache"):
        session(path, n_ctx=0)


def test_memory_is_said_and_checked_before_it_is_taken(folder, path, caplog, monkeypatch):
    with caplog.at_level("INFO"), session(path) as s:
        weights, buffers = s.weights.n_bytes, sum(s.program(name).plan.n_bytes for name in ("gen", "prompt"))
        context = s.kv.n_bytes + sum(table.nbytes for table in s._angles.values())
    line = f"memory besides: weights {weights / 1e6:.1f} MB woven, buffers {buffers / 1e6:.1f} MB for 512 tokens; "
    assert [r.message for r in caplog.records if r.message.startswith(line)]
    need = weights + buffers + context
    monkeypatch.setattr(free_memory, "available", lambda: need)
    session(path, repack=True).close()
    monkeypatch.setattr(free_memory, "available", lambda: need - 1)
    with pytest.raises(
        IkpyError, match=r"MB of memory are needed \(weights .* MB woven, buffers .*-no-rtr reads"
    ) as error:
        session(path, repack=True)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(free_memory, "available", lambda: need - buffers // 2 + weights_module.RESERVE)
    with session(path) as s:  # not woven then, for the buffers' sake
        assert not s.packed
    monkeypatch.setattr(free_memory, "available", lambda: need - 1)
    caplog.clear()
    with session(path) as s:
        assert not s.packed
    assert [r.message for r in caplog.records if r.levelname == "WARNING" and "memory" in r.message] == [
        "not enough memory to weave the weights: they are read from the file, which is slower",
        "the model is larger than the free memory: parts of it are read from the disk again and again",
    ]
    monkeypatch.setattr(free_memory, "available", lambda: context + buffers // 2)
    with pytest.raises(IkpyError, match=r"MB of memory are needed .*read from the file.* a smaller context \(-c\)"):
        session(path, repack=False)


def test_types_without_kernels_are_named(folder):
    m = tiny_llama.meta()
    tensors = tiny_llama.tensors(m)
    shape = tensors["blk.1.attn_q.weight"][1]
    tensors["blk.1.attn_q.weight"] = ("Q8_1", shape, bytes(table.tensor_bytes("Q8_1", shape)))
    with pytest.raises(ModelFileError, match=r"'blk.1.attn_q.weight': .*Q8_1 has no kernels yet; there are: .*Q4_0"):
        session(gguf_writer.write(folder / "kv.gguf", m, tensors))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_bad_frequency_factors_are_errors(folder, value):
    m = tiny_llama.meta()
    tensors = tiny_llama.tensors(m, freqs=True)
    tensors["rope_freqs.weight"] = ("F32", (8,), np.full(8, value, np.float32).tobytes())
    with pytest.raises(ModelFileError, match=r"rope_freqs.weight.*not finite and positive"):
        session(gguf_writer.write(folder / "freqs.gguf", m, tensors))


def test_progress_and_timings(path):
    seen = []
    with session(path, lambda *a: seen.append(a)) as s:
        assert seen[-1][0] == seen[-1][1] == sum(t.n_bytes for t in s.weights.matrices)
        s.eval(TOKENS[:20])
        s.eval([1])
        p, g = s.timings["prompt"], s.timings["generation"]
        assert (p.tokens, g.tokens) == (20, 1) and p.seconds > 0 < g.seconds
        macs = sum(t.shape[0] * t.shape[1] for t in s.weights.matrices)
        assert g.flops > 2 * macs and g.bytes > s.weights.n_bytes
        for token in (2, 3):
            s.eval([token])
        s.rewind(5)
        s.eval([4])
        costs = [s.program("gen").cost({"tokens": 1, "outputs": 1}, at) for at in (20, 21, 22, 5)]
        assert (g.tokens, g.flops, g.bytes) == (4, *map(sum, zip(*costs, strict=True)))
