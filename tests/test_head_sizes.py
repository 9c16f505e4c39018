"""Models whose heads are no whole number of vectors, or of blocks of 32: they run in every type of the KV cache, and
prompt, single tokens and any number of threads give the same bits.
"""

import gguf_writer
import numpy as np
import pytest
import tiny_gemma3
import tiny_llama
import tiny_model
from reference_gemma3 import ReferenceGemma3
from reference_llama import ReferenceLlama
from sessions import session

from ikpy_llm.engine.cache import session_file
from ikpy_llm.errors import ModelFileError
from ikpy_llm.kernels.kv.types import KV_TYPES

TOKENS = np.random.default_rng(2).integers(0, tiny_llama.N_VOCAB, 300).tolist()
# (heads, KV heads, elements of q and k, of v): stories260K, OpenLLaMA 3B has 100, and sizes that differ
SIZES = [(8, 4, 8, 8), (3, 1, 20, 20), (2, 2, 40, 40), (4, 2, 72, 72), (4, 4, 100, 100), (6, 2, 120, 104)]
SIZES += [(4, 2, 24, 40), (3, 3, 80, 36), (2, 2, 10, 6)]


def write(path, size, **more):
    n_head, n_head_kv, k_dim, v_dim = size
    heads = {"n_head": n_head, "n_head_kv": n_head_kv, "head_dim": k_dim, "attention__value_length": v_dim}
    return tiny_llama.write(path, **heads | more)


def parts(s, *sizes):
    """Logits of the tokens in steps of these sizes."""
    s.rewind(0)
    ends = np.cumsum(sizes)
    return np.concatenate([s.eval(TOKENS[b - a : b], all_logits=True) for a, b in zip(sizes, ends, strict=True)])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_are_those_of_the_model(folder, size):
    path = write(folder / "sizes.gguf", size, bias=size[2] == 40, types=("F32", "F16"))
    expected = ReferenceLlama(path, np.float16).logits(TOKENS)
    results = []
    for threads, cut in (1, (300,)), (2, (1, 1, 3, 95, 200)), (3, (30, *[1] * 20)):
        with session(path, threads=threads, n_ubatch=64) as s:
            results.append(parts(s, *cut))
        np.testing.assert_array_equal(results[-1], results[0][: len(results[-1])])
    assert abs(results[0] - expected).max() < 1.5e-3 * expected.std()
    with session(path, flash_attn=False) as s:
        assert abs(parts(s, 300) - expected).max() < 1.5e-3 * expected.std()


@pytest.mark.parametrize(("k", "v"), [(k, "q8_0") for k in KV_TYPES] + [("f32", v) for v in KV_TYPES])
def test_types_of_the_cache(folder, k, v):
    """Logits near those of an exact cache, nearer than with the type of the next fewer bits."""
    path = write(folder / "types.gguf", (4, 2, 40, 24))
    expected, most = ReferenceLlama(path).logits(TOKENS), {"f32": 1e-4, "f16": 1e-3, "bf16": 0.01, "q8_0": 0.01}
    with session(path, cache_type_k=k, cache_type_v=v) as s:
        y = parts(s, 300)
        np.testing.assert_array_equal(parts(s, 7, 1, 1, 91, 100, 100), y)
    limit = sum(most.get(name, 0.02 if name == "q8_KV" else 0.2) for name in (k, v))
    assert abs(y - expected).mean() < limit * expected.std()


@pytest.mark.parametrize("size", [(8, 4, 8, 8), (2, 2, 100, 100), (3, 1, 72, 20)], ids=str)
@pytest.mark.parametrize(("k", "v"), [("f16", "f16"), ("q4_0", "iq4_nl")])
def test_rotated_heads(folder, size, k, v):
    path = write(folder / "rotated.gguf", size)
    expected, limit = ReferenceLlama(path, np.float16).logits(TOKENS), 1e-3 if k == "f16" else 0.2
    with session(path, cache_type_k=k, cache_type_v=v, khad=True, vhad=True) as s:
        y = parts(s, 300)
        np.testing.assert_array_equal(parts(s, 1, 4, 95, 200), y)
    assert abs(y - expected).mean() < limit * expected.std()


@pytest.mark.parametrize("head_dim", [20, 72])
@pytest.mark.parametrize("types", [{}, {"cache_type_k": "q8_0", "cache_type_v": "q6_0"}], ids=str)
def test_windows_and_norms_of_heads(folder, head_dim, types):
    """gemma3: heads are normed, and most layers see a window, kept in a ring."""
    path = tiny_gemma3.write(folder / "window.gguf", head_dim=head_dim)
    expected = ReferenceGemma3(path, np.float16).logits(TOKENS)
    with session(path, n_ctx=1024, n_ubatch=64, **types) as s:
        y = parts(s, 300)
        np.testing.assert_array_equal(parts(s, 1, 1, 1, 97, 200), y)
    if types:
        assert abs(y - expected).mean() < 0.05 * expected.std()
    else:
        assert abs(y - expected).max() < 2e-3 * expected.std()


@pytest.mark.parametrize("types", [{}, {"cache_type_k": "q8_0", "cache_type_v": "q4_1", "khad": True}], ids=str)
def test_sessions_in_files(folder, tmp_path, types):
    path = write(folder / "saved.gguf", (4, 2, 20, 40))
    with session(path, **types) as s:
        s.eval(TOKENS[:280])
        session_file.save(tmp_path / "s", s, TOKENS[:280])
        expected = s.eval(TOKENS[280:], all_logits=True)
    with session(path, threads=1, **types) as s:
        assert session_file.load(tmp_path / "s", s) == TOKENS[:280]
        np.testing.assert_array_equal(s.eval(TOKENS[280:], all_logits=True), expected)


def without(path, size, *keys):
    """A model of these heads whose file lacks some keys."""
    n_head, n_head_kv, head_dim, _ = size
    meta = tiny_llama.meta(n_embd=n_head * head_dim, n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim)
    tensors = tiny_llama.tensors(meta)
    return gguf_writer.write(path, {k: v for k, v in meta.items() if k.partition(".")[2] not in keys}, tensors)


OPTIONAL = "attention.key_length", "attention.value_length", "rope.dimension_count"


def test_files_without_head_sizes(folder):
    """As old files are: a head has embedding_length / head_count elements, and turns whole."""
    path = without(folder / "old.gguf", (3, 1, 20, 20), *OPTIONAL)
    expected = ReferenceLlama(path, np.float16).logits(TOKENS)
    with session(path) as s:
        assert abs(parts(s, 300) - expected).max() < 1.5e-3 * expected.std()


def test_what_is_refused_names_what_the_file_has(folder):
    odd = without(folder / "odd.gguf", (3, 1, 21, 21), *OPTIONAL)
    with pytest.raises(ModelFileError) as error:
        session(odd)
    assert "key_length" not in str(error.value)
    assert "'llama.rope.dimension_count' is missing, which means 21; accepted: an even number" in str(error.value)
    given = without(folder / "given.gguf", (3, 1, 21, 21))
    with pytest.raises(ModelFileError, match=r"rope.dimension_count' is 21; accepted: an even"):
        session(given)
    part = tiny_llama.write(folder / "part.gguf", n_head=3, n_head_kv=1, head_dim=21, rope__dimension_count=14)
    with session(part) as s:  # an odd size of which an even part turns
        expected = ReferenceLlama(part, np.float16).logits(TOKENS)
        assert abs(parts(s, 300) - expected).max() < 1.5e-3 * expected.std()


def test_commands(ikpy, tmp_path):
    """ikpy-run gives the same text whatever the prompt's steps; ikpy-bench runs; -ctk of a type with blocks, too."""
    meta = tiny_llama.meta(n_head=8, n_head_kv=4, head_dim=20) | {"general.file_type": 7} | tiny_model.VOCABULARY
    tensors = tiny_llama.tensors(meta, ("Q8_0",), seed=1, tied=True)
    path = gguf_writer.write(tmp_path / "m.gguf", meta, tensors)
    for types in (), ("-ctk", "q8_0", "-ctv", "q4_0"), ("-fa", "off"):
        words = "run", "-m", path, "-p", "hello, world", "-n", "8", "--temp", "0", "-no-cnv", *types
        texts = [ikpy(*words, "-ub", n) for n in (1, 64)]
        assert [t.returncode for t in texts] == [0, 0], texts[0].stderr
        assert texts[0].stdout == texts[1].stdout and len(texts[0].stdout) > 12
    done = ikpy("bench", "-m", path, "-p", "32", "-n", "4", "-r", "1", "-ctk", "f16,q8_0", "-o", "json")
    assert done.returncode == 0, done.stderr
