"""Interleaved types: taken apart and woven again to the byte, as ik_llama.cpp does it; files that hold them."""

import hashlib

import fuzz_models
import gguf_writer
import numpy as np
import pytest
import reference_formats as formats
import tiny_llama
from matmul_cases import GOLDEN

import ikpy_llm
from ikpy_llm import Model
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.errors import ModelFileError
from ikpy_llm.kernels.derive import api, layout
from ikpy_llm.kernels.quants import table
from ikpy_llm.kernels.quants.interleaved import weave

WOVEN = list(weave.types())
HAVE_BASE = [t for t in WOVEN if t + ".deq" not in GOLDEN]


def random_rows(name: str, n: int, blocks: int) -> np.ndarray:
    w = weave.types()[name]
    return np.random.default_rng(n).integers(0, 256, (n, w.meta + blocks * w.n_bytes), np.uint8)


def test_all_interleaved_types_are_there():
    assert set(WOVEN) == {info.name for info in table.BY_ID.values() if info.interleave > 1}
    assert set(WOVEN) - set(HAVE_BASE) == {"IQ1_S_R4", "IQ1_M_R4", "Q8_K_R8", "Q8_K_R16", "Q8_KV_R8", "BF16_R16"}


@pytest.mark.parametrize("name", WOVEN)
def test_there_and_back(name):
    """Any bytes survive, in any number of groups and blocks; the machine code does what NumPy does."""
    w = weave.types()[name]
    for groups, blocks in (1, 1), (1, 3), (5, 2):
        rows = random_rows(name, groups * w.rows, blocks)
        woven = weave.weave(name, rows)
        assert woven.shape == (rows.size,) and sorted(woven) != list(woven)
        columns = blocks * w.columns
        assert (weave.unweave(name, woven, len(rows), columns) == rows).all()
        assert (weave.weave(name, weave.unweave(name, rows.ravel(), len(rows), columns)) == rows.ravel()).all()
        for threads in (1, 3):
            assert (api.unweave(woven, name, len(rows), columns, threads=threads) == rows.ravel()).all()


@pytest.mark.parametrize("name", HAVE_BASE)
def test_golden_bytes(name):
    """ik_llama.cpp's own repacking of the rows of the base type."""
    woven = GOLDEN[name + ".woven"].ravel()
    rows = weave.unweave(name, woven, 16, 512)
    assert hashlib.sha256(rows.tobytes()).digest() == GOLDEN[name + ".rows"].tobytes()
    assert (weave.weave(name, rows) == woven).all()


@pytest.mark.parametrize("name", [*WOVEN, "I2_S"])
def test_golden_values(name):
    woven = GOLDEN[name + ".woven"].ravel()
    if name in HAVE_BASE:
        values = formats.decode(weave.base_of(name), weave.unweave(name, woven, 16, 512)).float32
    else:
        values = GOLDEN[name + ".deq"]
    assert (ikpy_llm.dequantize(woven, name, (16, 512)) == values).all()


def test_products():
    woven = GOLDEN["IQ4_XS_R8.woven"].ravel()
    x = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    wanted = ikpy_llm.matmul(weave.unweave("IQ4_XS_R8", woven, 16, 512), "IQ4_XS", (16, 512), x)
    assert (ikpy_llm.matmul(woven, "IQ4_XS_R8", (16, 512), x) == wanted).all()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("Q4_K_R4", (6, 256), "Q4_K_R4 needs a multiple of 4 rows, not 6"),
        ("IQ4_XS_R8", (4, 256), "needs a multiple of 8 rows, not 4"),
        ("Q4_K_R4", (4, 128), "multiple of 256"),
        ("BF16_R16", (16, 33), "multiple of 2"),
        ("I2_S", (2, 64), "multiple of 128"),
    ],
)
def test_refused_shapes(name, shape, message):
    with pytest.raises(ValueError, match=message):
        ikpy_llm.dequantize(b"", name, shape)


def interleaved_file(path, name: str, rows: int = 0):
    """A tiny llama whose feed-forward matrices are of an interleaved type; the same with rows of the base type."""
    meta = tiny_llama.meta(n_embd=256, n_head=4, head_dim=64, n_ff=512)
    tensors = tiny_llama.tensors(meta)
    files = []
    for kind in (name, weave.base_of(name)):
        for key, (_, shape, _) in tensors.items():
            if "ffn" not in key or "norm" in key:
                continue
            q = random_rows(name, shape[0], shape[1] // weave.types()[name].columns)
            blocks = q.reshape(shape[0], -1, 144)
            blocks[..., :4] = np.array([3e-4, 2e-4], np.float16).view(np.uint8)
            data = weave.weave(name, q) if kind == name else q.ravel()
            tensors[key] = (kind, (shape[0] - rows, shape[1]), data.tobytes())
        files.append(gguf_writer.write(path / f"{kind}.gguf", meta, tensors))
    return files


def test_models_run_like_those_of_rows(tmp_path, caplog):
    """And a line per type says what was repacked."""
    logits = []
    caplog.set_level("INFO", "ikpy.weights")
    for path, name in zip(interleaved_file(tmp_path, "Q4_K_R4"), ("Q4_K_R4", "Q4_K"), strict=True):
        assert open_gguf(path).tensors["blk.0.ffn_up.weight"].type_name == "Q4_K"
        caplog.clear()
        for repack in (True, False):
            with Model.load(path, threads=2, repack=repack, n_ctx=256) as model:
                logits.append(model.logits([1, 2, 3]))
        report = [r.message for r in caplog.records if name in r.message]
        assert report == [f"repacked 6 tensors of {name} into panels of {layout.width()} rows"]
    assert np.isfinite(logits[0]).all() and logits[0].std() > 0
    assert all((a == logits[0]).all() for a in logits)


@pytest.mark.parametrize("repack", [True, False])
def test_requantized_prompts(tmp_path, repack):
    """Making the bytes of Q8_0 releases those of the rows; programs that have their address go on."""
    found = []
    for path in interleaved_file(tmp_path, "Q4_K_R4"):
        with Model.load(path, threads=2, repack=repack, n_ctx=256, pp_requant=True) as model:
            found.append((model.logits([1, 2, 3]), model.session.eval([4]), model.session.eval([5, 6])))
    assert all((a == b).all() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["IQ1_S_R4", "Q8_KV_R8"])
def test_tensors_computed_from_rows_without_a_type_of_their_own(tmp_path, caplog, name):
    """Values' parts of attn_kv_b: they run, and the line about them names the type of such rows."""
    caplog.set_level("INFO", "ikpy.weights")
    path, logits = gguf_writer.write(tmp_path / "m.gguf", *fuzz_models.model("deepseek2", (name,))), []
    for repack in (True, False):
        with Model.load(path, threads=2, repack=repack, n_ctx=256, mla=1) as model:
            logits.append(model.logits([1, 2, 3]))
    assert np.isfinite(logits[0]).all() and (logits[0] == logits[1]).all()
    report = [r.message for r in caplog.records]
    assert any(line.startswith(f"repacked 2 tensors of {weave.base_of(name)} into panels") for line in report)


def test_file_whose_rows_cannot_be_taken_apart(tmp_path):
    path = interleaved_file(tmp_path, "Q4_K_R4", rows=2)[0]
    with pytest.raises(ModelFileError, match=r"blk\.0\.ffn.*Q4_K_R4 needs a multiple of 4 rows, not"):
        open_gguf(path)
