"""What a model opened is given back when it is closed, without a collection of cycles: descriptors and maps."""

import gc
import os
import sys
from pathlib import Path

import pytest
import tiny_deepseek2
import tiny_gemma3
import tiny_llama
import tiny_moe
from test_weave import interleaved_file

from ikpy_llm import IkpyError, Model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

FILES = {
    "llama": lambda folder: tiny_llama.write(folder / "m.gguf", types=("Q8_0",)),
    "interleaved": lambda folder: interleaved_file(folder, "Q4_K_R4")[0],
    "deepseek2": lambda folder: tiny_deepseek2.write(folder / "m.gguf", types=("Q8_0",)),
    "deepseek2 older": lambda folder: tiny_deepseek2.write(folder / "m.gguf", layout="k_b"),
    "gemma3": lambda folder: tiny_gemma3.write(folder / "m.gguf"),
    "moe": lambda folder: tiny_moe.write(folder / "m.gguf"),
}


def held(path: Path) -> list[str]:
    """Descriptors and maps of a file that this process has."""
    links = [os.readlink(f) for f in Path("/proc/self/fd").iterdir() if os.path.lexists(f)]
    maps = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return [name for name in (*links, *maps) if name == str(path)]


@pytest.fixture
def no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("options", [{}, {"repack": False}, {"pp_requant": True}], ids=str)
def test_a_closed_model_holds_no_file(kind, options, tmp_path, no_collection):
    path = FILES[kind](tmp_path)
    model = Model.load(path, n_ctx=256, threads=1, **options)
    before = model.logits([1, 2, 3])
    assert held(path)
    model.close()
    assert held(path) == []
    for call in (lambda: model.logits([1]), lambda: model.session.file.tensors["token_embd.weight"].data):
        with pytest.raises(IkpyError, match="closed"):
            call()
    with Model.load(path, n_ctx=256, threads=1, **options) as again:
        assert (again.logits([1, 2, 3]) == before).all()


@pytest.mark.parametrize("kind", FILES)
def test_a_forgotten_model_holds_no_file(kind, tmp_path, no_collection):
    """Without close(): nothing refers to itself."""
    path = FILES[kind](tmp_path)
    model = Model.load(path, n_ctx=256, threads=1)
    model.logits([1, 2, 3])
    del model
    assert held(path) == []


def test_a_view_of_a_tensor_outlives_its_model(tmp_path):
    path = FILES["llama"](tmp_path)
    with Model.load(path, n_ctx=256, threads=1) as model:
        data = model.session.file.tensors["token_embd.weight"].data
    assert int(data.astype(int).sum()) > 0 and held(path)
    del data
    assert held(path) == []


def test_a_refused_file_is_closed(tmp_path, no_collection):
    path = FILES["llama"](tmp_path)
    for options in ({"n_ctx": 10**12}, {"ser": "x"}, {"override_kv": {"block_count": 3}}, {"cache_type_k": "q3_K"}):
        with pytest.raises(IkpyError):
            Model.load(path, threads=1, **options)
        assert held(path) == []
