"""Every fusion row can be switched off, does something, and changes no result."""

import numpy as np
import pytest
import tiny_gemma3
import tiny_llama
import tiny_moe
from numpy_ops import NumpyOps
from reference_gemma3 import ReferenceGemma3
from reference_llama import ReferenceLlama
from reference_moe import ReferenceMoE

from ikpy_llm import models
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.graph.graph import Graph
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.options import Options
from ikpy_llm.engine.program import fusion
from ikpy_llm.engine.step.session import Session
from ikpy_llm.errors import IkpyError

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]


@pytest.fixture(scope="module")
def path(folder):
    """Biases, tied embeddings and two kinds of activations side by side, so that rows have something to do."""
    return tiny_llama.write(folder / "x.gguf", types=("F32", "Q8_0", "Q4_0"), bias=True, tied=True, freqs=True)


@pytest.fixture(scope="module")
def gemma3(folder):
    """Norms of heads and norms after blocks."""
    return tiny_gemma3.write(folder / "gemma3.gguf", types=("F32", "Q8_0"))


@pytest.fixture(scope="module")
def moe(folder):
    """Experts, and one that all rows share."""
    return tiny_moe.write(
        folder / "moe.gguf", types=("F32", "Q8_0", "Q4_0"), architecture="qwen2moe", bias=True, scales=True
    )


NORMS, EXPERTS = ("norm_add", "norm_rope"), ("combine_add",)  # rows for which llama has no use


def graph_of(path, last_rows=False):
    file = open_gguf(path)
    graph = Graph(str(path), file.tensors, last_rows)
    params = Params(str(path), file.meta["general.architecture"], file.meta)
    models.builder(file.meta, str(path))(graph, params)
    return graph


@pytest.mark.parametrize("without", [(), ("all",), *((name,) for name in fusion.ROWS)], ids=str)
def test_op_lists_compute_the_model(path, gemma3, moe, without):
    for reference, file in (ReferenceLlama(path), path), (ReferenceGemma3(gemma3), gemma3), (ReferenceMoE(moe), moe):
        expected = reference.logits(TOKENS)
        for last_rows in (False, True):
            got = NumpyOps(reference.w).run(fusion.apply(graph_of(file, last_rows), without), TOKENS)
            np.testing.assert_allclose(got, expected[-1:] if last_rows else expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", fusion.ROWS)
def test_every_row_shortens_or_changes_the_list(path, gemma3, moe, name):
    graph = graph_of(gemma3 if name in NORMS else moe if name in EXPERTS else path)
    assert list(map(repr, fusion.apply(graph, (name,)))) != list(map(repr, fusion.apply(graph)))


def logits(path, **options):
    with Session(
        open_gguf(path), models.builder(open_gguf(path).meta, ""), Options(n_ctx=256, threads=2, **options)
    ) as s:
        first = s.eval(TOKENS, all_logits=True)
        return np.concatenate([first, s.eval([7]), s.eval(TOKENS)])


@pytest.mark.parametrize("name", [*fusion.names(), "all"])
def test_rows_change_no_bit(path, gemma3, moe, name):
    files = {"all": [path, gemma3, moe], "share_acts": [path, moe], "gated_quantize": [path, moe]}
    files |= {key: [gemma3] for key in NORMS} | {key: [moe] for key in EXPERTS}
    for file in files.get(name, [path]):
        np.testing.assert_array_equal(logits(file), logits(file, no_fusion=name))


def test_unknown_rows_are_refused(path):
    with pytest.raises(IkpyError, match=r"no row is called 'norm_quantise'.*norm_quantize"):
        logits(path, no_fusion="overlap,norm_quantise")
