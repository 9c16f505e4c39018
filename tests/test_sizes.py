"""What would never end, or never fit, is refused before work, in one line that says what fits."""

import tracemalloc

import numpy as np
import pytest
import tiny_model
from test_scarcity import one_line

from ikpy_llm import Model
from ikpy_llm.engine.file import synthetic
from ikpy_llm.engine.graph import rope
from ikpy_llm.errors import IkpyError


@pytest.fixture(scope="module")
def model(folder):
    return tiny_model.write(folder / "tiny.gguf")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench -p 1-99999999999", "-p: '1-99999999999' are more than 4096 numbers; up to so many are accepted"),
        ("bench -b 1-4000,1-97", "are more than 4096 numbers"),
        ("bench -p 1-4096 -d 0-4000", "all combinations are 16392097 tests; up to 10000 are accepted"),
        ("bench -p 4 -n 1 -ub 1-200 -t 1-60", "all combinations are 24000 tests"),
        ("bench -p 99999999999", "needs 32000000 MB for the KV cache"),
        ("bench -pg 1,9999999999999999999999", "at most 64 bits"),
        ("bench -r 1000000000", "-r: '1000000000' is not a whole number from 1 to 100000"),
        ("bench --delay 1e300", "--delay: '1e300' is not a number from 0 to 86400"),
        ("bench -t 100000", "-t: '100000' is not a whole number up to 1024"),
        ("sweep-bench -c 99999999999", "needs 32000000 MB for the KV cache"),
        ("sweep-bench -c 256 -n 10000", "-n 10000 does not fit into the context of 256 positions"),
        ("sweep-bench -nrep 1000000000", "-nrep: '1000000000' is not a whole number from 1 to 100000"),
        ("run -p x -c 99999999999", "needs 32000000 MB for the KV cache"),
        ("run -p x -n 9223372036854775808", "n_predict"),
    ],
)
def test_sizes_that_cannot_be(ikpy, model, words, message):
    done = ikpy(*words.split(), "-m", model, timeout=60)
    if "9223372036854775808" in words:
        assert done.returncode == 0 or message in one_line(done)
    else:
        assert message in one_line(done) and not done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "bench --synthetic 1000B",
            "--synthetic 1000B: accepted are a size such as 0.4B or 7B, tiny, moe, mla; the largest is 200B",
        ),
        ("bench --synthetic 200B --type F32", "weights of type F32 (32.00 bits) need 755.2 GB of memory"),
        ("bench --synthetic 200B --type F32,F16", "weights of type F16 (16.00 bits) need 377.7 GB of memory"),
        ("kernels show gemv Q4_0 n=100000000", "n=100000000: whole numbers up to 64 are accepted"),
        (f"kernels show gemv Q4_0 n={'9' * 5000}", "n=99999999999999999999: whole numbers up to 64 are accepted"),
    ],
)
def test_sizes_of_what_has_no_file(ikpy, words, message):
    assert message in one_line(ikpy(*words.split(), timeout=60))


def test_what_of_generated_weights_fits():
    shape = synthetic.shape_of("7B")
    synthetic.check_memory(shape, "Q4_0", 5 << 30)
    with pytest.raises(
        IkpyError, match=r"Q4_0 \(4.50 bits\) need 3.9 GB of memory, 2.1 GB are free; up to --synthetic"
    ) as e:
        synthetic.check_memory(shape, "Q4_0", 2 << 30)
    fits = synthetic.shape_of(str(e.value).split()[-2])
    synthetic.check_memory(fits, "Q4_0", 2 << 30)
    with pytest.raises(IkpyError, match=r"up to --synthetic 0\.0B fits"):
        synthetic.check_memory(shape, "Q4_0", 0)


def test_numbers_of_the_api_that_cannot_be(model):
    for options in (
        {"n_ctx": 1 << 40},
        {"n_ctx": 1 << 70},
        {"threads": 100_000},
        {"n_ubatch": 1 << 70},
        {"amb": 1 << 60},
    ):
        with pytest.raises(IkpyError):
            Model.load(model, **options)
    with Model.load(model, n_ctx=256, n_ubatch=1 << 60, n_batch=1 << 60, threads=1) as m:
        with pytest.raises(IkpyError, match="n_predict"):
            m.generate("x", n_predict=2**64)
        text = "".join(m.generate("x", n_predict=2**63, ignore_eos=True, temp=0))
        assert text == "".join(m.generate("x", n_predict=-1, ignore_eos=True, temp=0))


def test_tables_of_long_contexts_take_little_besides(monkeypatch):
    """Computed in parts, with the same bits."""
    angles = rope.Angles(64, 10000.0, 1.5, scale=1.1)
    monkeypatch.setattr(rope, "POSITIONS", 1 << 30)
    expected = rope.table(angles, 100_000)
    monkeypatch.undo()
    tracemalloc.start()
    try:
        found = rope.table(angles, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1.6 * found.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
