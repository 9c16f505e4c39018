"""Synthetic models: the size of the reference, sane weights of every declared type, and the engine runs them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ikpy_llm import models
from ikpy_llm.engine.file import synthetic
from ikpy_llm.engine.options import Options
from ikpy_llm.engine.step.session import Session
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels import quants
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.derive.api import dequantize
from ikpy_llm.kernels.quants import table
from ikpy_llm.models import llama


def test_the_model_whose_speeds_are_compared():
    shape = synthetic.shape_of("0.4B")
    assert shape == synthetic.Shape() and shape.layer_weights == 377_487_360
    sizes = {"Q4_0": 426, "Q8_0": 615, "Q6_K": 524, "F16": 969}
    assert {t: round(synthetic.SyntheticFile(t, shape).n_bytes / 1e6) for t in sizes} == sizes


@pytest.mark.parametrize(
    ("size", "n_layer"), [("0.4B", 8), ("400M", 8), ("0.8b", 16), ("7B", 140), ("1M", 1), ("2", 40)]
)
def test_sizes(size, n_layer):
    assert synthetic.shape_of(size).n_layer == n_layer


@pytest.mark.parametrize("size", ["big", "0", "-1B", "1e9B", ""])
def test_sizes_that_are_refused(size):
    with pytest.raises(IkpyError, match="--synthetic"):
        synthetic.shape_of(size)


@pytest.mark.parametrize("name", ["moe", "mla"])
def test_experts_and_latents(name):
    """About half a billion weights; the engine runs a small one of the kind, and knows what a token touches."""
    shape = synthetic.shape_of(name)
    file = synthetic.SyntheticFile("Q4_0", shape)
    assert 0.45e9 < sum(math.prod(t.shape) for t in file.tensors.values()) < 0.6e9
    small = replace(shape, n_layer=2, n_embd=256, n_ff=256, n_vocab=512)
    file = synthetic.SyntheticFile("Q4_0", small)
    with Session(file, models.builder(file.meta, ""), Options(n_ctx=256, threads=2)) as session:
        logits = session.eval([1, 2, 3])
        assert logits.shape == (1, 512) and np.isfinite(logits).all() and logits.std() > 0
        experts = 2 * 3 * 32 * 256 * 256 * 4.5 / 8
        n_bytes, macs = session.touched()
        assert n_bytes < session.weights.n_bytes - 0.99 * experts * 28 / 32
        assert macs > 2 * 3 * 4 * 256 * 256 + 512 * 256


def test_types():
    assert synthetic.types_of(["q4_0", "Q4_K", "Q4_0"]) == ["Q4_0", "Q4_K"]
    everything = synthetic.types_of(["all"])
    assert set(everything) == set(quants.file_types()) - {"F32"} and everything[-1] in ("F16", "BF16")
    with pytest.raises(IkpyError, match="--type Q9: there are "):
        synthetic.types_of(["Q9"])
    assert synthetic.bits_per_weight("Q4_K") == 4.5
    for name in everything:  # a report names the type that was asked for, of interleaved types too
        assert table.by_id(synthetic.synthetic_tensor("x", name, (16, 512)).type_id).name == name


@pytest.mark.slow
def test_weights_of_every_type_are_sane():
    """Finite, of about the same size, and different from row to row: or attention overflows and caches flatter."""
    names = quants.names()
    jit.load(jit.Kernel("derive.dequant", type=name) for name in names)
    for name in names:
        data = synthetic.synthetic_tensor("x", name, (16, 512)).data
        values = dequantize(data, name, (16, 512))
        assert np.isfinite(values).all(), name
        assert synthetic.DEVIATION / 4 < values.std() < synthetic.DEVIATION * 4, (name, values.std())
        assert len(np.unique(values, axis=0)) == 16, name


def test_bytes_come_and_go():
    tensor = synthetic.synthetic_tensor("x", "Q4_0", (100, 256))
    first = tensor.data.copy()
    assert len(first) == tensor.n_bytes == 100 * 144 and tensor.data.ctypes.data % 4096 == 0
    tensor.release()
    assert (tensor.data == first).all()


@pytest.mark.parametrize(("kind", "repack"), [("Q4_K", True), ("Q4_K", False), ("Q8_K_R8", True)])
def test_the_engine_runs_it(kind, repack, caplog):
    caplog.set_level("INFO", "ikpy.weights")
    file = synthetic.SyntheticFile(kind, synthetic.TINY)
    with Session(file, llama.build, Options(n_ctx=256, threads=2, repack=repack)) as session:
        assert repack == any(f"tensors of {kind} into panels" in r.message for r in caplog.records)
        logits = session.eval([1, 2, 3])
        assert logits.shape == (1, 512) and np.isfinite(logits).all() and logits.std() > 0
        again = session.eval([4])
        session.rewind(3)
        assert (session.eval([4]) == again).all()
