"""Weights that are not finite are found when they are woven, or read where they are not, and named: every type, every
tensor of every architecture.
"""

import re
from contextlib import closing

import gguf_writer
import numpy as np
import pytest
import reference_formats as formats
import test_relatives as relatives
import tiny_deepseek2
import tiny_gemma3
import tiny_llama
import tiny_moe
from gguf import GGUFReader
from matmul_cases import FLOAT_TYPES, TYPES, W, random_rows
from sessions import session

import ikpy_llm
from ikpy_llm import ModelFileError
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.step import finite, weights
from ikpy_llm.engine.step.workers import Workers
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.compiler.jit import Kernel
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.quants import file_types, get, table
from ikpy_llm.kernels.quants.interleaved import weave

BAD = np.nan, np.inf, -np.inf


def scales(name: str) -> list[str]:
    """Members of a row or block that are numbers."""
    if name in FLOAT_TYPES:
        return ["values"]
    if formats.FORMATS[name].row:
        return ["row"]
    if name in ("IQ1_M", "MXFP4"):
        return [name]
    record = formats.BLOCKS[name]
    return [m for m in record.names if record[m].base.kind == "f"]


def spoil(name: str, raw: np.ndarray, member: str, row: int, block: int, value: float) -> None:
    """Make a number of one row not finite; raw: uint8 [rows][row bytes]."""
    if member == "values":
        if name == "BF16":
            raw.view(np.uint16)[row, block] = np.float32(value).view(np.uint32) >> 16
        else:
            raw.view(formats.PLAIN[name])[row, block] = value
    elif member == "row":
        formats.row_scales(name, raw)[row] = value
    elif member == "IQ1_M":
        bits = np.float16(value).view(np.uint16) >> np.array([0, 4, 8, 12], np.uint16) & 15
        sc = formats.blocks_of(name, raw)["sc"]
        sc[row, block] = sc[row, block] & 0xFFF | bits << 12
    elif member == "MXFP4":
        formats.blocks_of(name, raw)["e"][row, block] = 255  # its only one that is not a number
    else:
        formats.blocks_of(name, raw)[member][row, block] = value


def rows_found(name: str, raw: np.ndarray, k: int) -> tuple[int, int]:
    """Numbers of a row, as `pack` and `finite` tell them: 0 for a matrix of finite numbers."""
    rows, (size, found) = len(raw), (raw.shape[1], np.zeros(2, np.int64))
    panels = np.zeros(layout.weight_bytes(name, rows, k) + 64, np.uint8)
    panels = panels[-panels.ctypes.data % 64 :]
    jit.call(Kernel("derive.pack", type=name), raw, size, rows, k, panels, found[:1], nth=2)
    jit.call(Kernel("derive.finite", type=name), raw, size, rows, k, found[1:], nth=1)
    return tuple(found.tolist())


@pytest.mark.parametrize("name", TYPES)
def test_every_number_is_looked_at(name):
    """Each block of a row and each row of a matrix; the extremes that are finite are none of them."""
    k = 3 * get(name).block if name not in FLOAT_TYPES else 4 * W + 3
    clean = random_rows(name, W + 3, k)
    members = scales(name)
    assert bool(members) == (name != "NVFP4")
    for member in members:
        for i in range(k // get(name).block):
            for row, value in (0, np.nan), (W - 1, np.inf), (W, -np.inf), (W + 2, np.nan), (i % W, -np.inf):
                raw = clean.copy()
                spoil(name, raw, member, row, i, value)
                assert rows_found(name, raw, k) == (row + 1, row + 1), (member, i, row, value)
    assert rows_found(name, clean, k) == (0, 0)
    if members and name not in ("MXFP4", *FLOAT_TYPES):
        formats.put_scales(name, clean, -65504.0)
        assert rows_found(name, clean, k) == (0, 0)


def test_every_code_of_a_scale_of_nvfp4_is_a_number():
    """127, a NaN elsewhere, is 0 in llama.cpp; the sign bit means nothing."""
    raw = np.zeros((256, 36), np.uint8)
    formats.blocks_of("NVFP4", raw)["sc"] = np.arange(256)[:, None, None]
    assert rows_found("NVFP4", raw, 64) == (0, 0)
    assert np.isfinite(ikpy_llm.dequantize(raw, "NVFP4", (256, 64))).all()


def matrices(folder, name: str, member: str, value: float):
    """A file with two tensors of a type, the second of two matrices, in whose last a number is not finite."""
    base = weave.base_of(name)
    k = 512
    rows = [random_rows(base, 16, k, seed) for seed in range(3)]
    spoil(base, rows[2], member, 5, 1, value)

    def stored(raw: np.ndarray) -> bytes:
        return raw.tobytes() if name == base else weave.weave(name, raw).tobytes()

    tensors = {"a": (name, (16, k), stored(rows[0])), "b": (name, (2, 16, k), stored(rows[1]) + stored(rows[2]))}
    return gguf_writer.write(folder / "m.gguf", {"general.architecture": "llama"}, tensors)


@pytest.mark.parametrize("name", [n for n in file_types() if n not in ("NVFP4", "I2_S")])
def test_types_of_files(tmp_path, name):
    """Woven and read from the file; the error names file, tensor, type, matrix and row."""
    base = weave.base_of(name)
    for value in BAD[:2]:
        path = matrices(tmp_path, name, scales(base)[-1], value)
        with closing(open_gguf(path)) as file, Workers(2) as workers:
            for call in "pack", "check":
                w = weights.Weights(file, file.tensors, {"a": "matrix", "b": "matrix"})
                with pytest.raises(ModelFileError) as error:
                    getattr(w, call)(workers)
                words = f"{re.escape(str(path))}: tensor 'b' .{name}. has .* at matrix 1, row 5(,.*)?; finite"
                assert re.match(words, str(error.value)) and "\n" not in str(error.value)
            weights.Weights(file, file.tensors, {"a": "matrix"}).check(workers)


def test_the_scale_of_ternary_matrices(tmp_path):
    raw = np.zeros(table.tensor_bytes("I2_S", (16, 128)), np.uint8)
    raw[512:516] = np.frombuffer(np.float32(np.inf), np.uint8)
    path = gguf_writer.write(tmp_path / "m.gguf", {}, {"a": ("I2_S", (16, 128), raw.tobytes())})
    with closing(open_gguf(path)) as file, Workers(1) as workers:
        for call in "pack", "check":
            with pytest.raises(ModelFileError, match=r"tensor 'a' .I2_S. has a scale that is not .* at row 0; finite"):
                getattr(weights.Weights(file, file.tensors, {"a": "matrix"}), call)(workers)


# ---------------------------------------------------------------- models
def relative(path, architecture, **more):
    m, shapes = relatives.model(architecture, n_layer=1, **more)
    return gguf_writer.write(path, m, tiny_llama.random(shapes, ("F32",), 0))


MODELS = {
    "llama": lambda p: tiny_llama.write(p, n_layer=1, bias=True),
    "llama, tied": lambda p: tiny_llama.write(p, n_layer=1, tied=True),
    "qwen2": lambda p: tiny_llama.write(p, n_layer=1, bias=True, architecture="qwen2"),
    "gemma3": lambda p: tiny_gemma3.write(p, n_layer=2),
    "qwen3moe": lambda p: tiny_moe.write(p, architecture="qwen3moe", n_layer=1),
    "qwen2moe": lambda p: tiny_moe.write(p, architecture="qwen2moe", n_layer=1, bias=True, scales=True),
    "deepseek2": lambda p: tiny_deepseek2.write(p, n_layer=2, **tiny_deepseek2.V3),
    "deepseek2, k_b": lambda p: tiny_deepseek2.write(p, n_layer=2, layout="k_b"),
    "gemma2": lambda p: relative(p, "gemma2"),
    "glm4": lambda p: relative(p, "glm4"),
    "bitnet-b1.58": lambda p: relative(p, "bitnet-b1.58", scales=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_model(tmp_path, name):
    """None is swallowed by attention, gates or the choice of experts; woven, or read from the file."""
    path = MODELS[name](tmp_path / "clean.gguf")
    with session(path, n_ctx=256) as s:
        assert np.isfinite(s.eval([1, 2, 3])).all()
    clean, spoilt = path.read_bytes(), tmp_path / "spoilt.gguf"
    ways = [{"repack": True}, {"repack": False}]
    ways += [{"mla": mode} for mode in (0, 1, 2)] if name.startswith("deepseek2") else []
    for n, t in enumerate(GGUFReader(path).tensors):
        assert t.tensor_type.name == "F32"
        data = bytearray(clean)
        at = t.data_offset + 4 * (t.n_elements - 1)  # of the last expert, the last row
        data[at : at + 4] = np.float32(BAD[n % 3]).tobytes()
        spoilt.write_bytes(data)
        whole = t.name != "token_embd.weight" or "output.weight" not in {x.name for x in GGUFReader(path).tensors}
        for how in ways:
            if t.name.endswith(".input_scale"):  # of no engine that keeps activations as they are
                session(spoilt, n_ctx=256, **how).close()
                continue
            words = rf"spoilt.gguf: tensor '.*{re.escape(t.name)}"
            if "attn_kv_b" in t.name or "attn_k_b" in t.name or "attn_v_b" in t.name:
                words = rf"spoilt.gguf: tensor '.*({re.escape(t.name)}|attn_.*_b.weight' .*computed from .*attn_)"
            if whole:
                with pytest.raises(ModelFileError, match=words):
                    session(spoilt, n_ctx=256, **how).close()
                continue
            with session(spoilt, n_ctx=256, **how) as s:  # tokens are looked up one by one
                assert np.isfinite(s.eval([1, 2, 3])).all()
                with pytest.raises(
                    ModelFileError, match=rf"{words}' .F32. has .* row {tiny_llama.N_VOCAB - 1}, column"
                ):
                    s.eval([1, tiny_llama.N_VOCAB - 1])


def test_matrices_too_large_for_what_is_made_of_them(tmp_path):
    """Finite numbers that Q8_0 has no scale for."""
    meta = tiny_llama.meta(n_layer=1)
    tensors = tiny_llama.tensors(meta, ("MXFP4",))
    kind, shape, raw = tensors["blk.0.ffn_up.weight"]
    raw = np.frombuffer(raw, np.uint8).copy().reshape(shape[0], -1)
    formats.blocks_of("MXFP4", raw)["e"] = 200
    tensors["blk.0.ffn_up.weight"] = kind, shape, raw.tobytes()
    path = gguf_writer.write(tmp_path / "m.gguf", meta, tensors)
    session(path).close()
    for repack in True, False:
        with pytest.raises(ModelFileError, match=r"blk.0.ffn_up.weight as Q8_0.*computed from blk.0.ffn_up.weight"):
            session(path, pp_requant=True, repack=repack)


def test_memory_that_cannot_hold_the_weights(tmp_path, monkeypatch, caplog):
    """They are then not read for this alone: said, and what comes of them is an error where it is not finite."""
    meta = tiny_llama.meta(n_layer=1)
    tensors = tiny_llama.tensors(meta)
    kind, shape, _ = tensors["output.weight"]
    tensors["output.weight"] = kind, shape, np.full(shape, np.nan, np.float32).tobytes()
    path = gguf_writer.write(tmp_path / "m.gguf", meta, tensors)
    monkeypatch.setattr(weights.free_memory, "available", lambda: 1000)
    with closing(open_gguf(path)) as file, Workers(1) as workers, caplog.at_level("INFO"):
        weights.Weights(file, file.tensors, {"output.weight": "matrix"}).check(workers)
    assert "weights are larger than the free memory: not checked for numbers that are not finite" in caplog.messages


def test_products_with_what_is_not_finite():
    """Functions on arrays take the bytes for what they are: rows with such a number give NaN, no others do."""
    raw = random_rows("Q4_K", 20, 512)
    spoil("Q4_K", raw, "d", 7, 1, np.nan)
    x = np.ones((3, 512), np.float32)
    for n in 1, 3:
        y = ikpy_llm.matmul(raw, "Q4_K", (20, 512), x[:n])
        assert np.isnan(y[:, 7]).all() and np.isfinite(np.delete(y, 7, 1)).all()
    assert np.flatnonzero(np.isnan(ikpy_llm.dequantize(raw, "Q4_K", (20, 512))).any(1)).tolist() == [7]
    assert finite.first_row(raw, "Q4_K", 20, 512) == 7


def test_on_the_command_line(tmp_path, ikpy):
    path = tiny_llama.write(tmp_path / "m.gguf", n_layer=1)
    at = next(t.data_offset for t in GGUFReader(path).tensors if t.name == "blk.0.attn_k.weight")
    data = bytearray(path.read_bytes())
    data[at + 4 : at + 8] = np.float32(np.inf).tobytes()
    path.write_bytes(data)
    for words in (), ("-no-rtr",):
        done = ikpy("run", "-m", path, "-p", "x", "-n", 1, *words)
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.strip().splitlines()[-1] == (
            f"error: {path}: tensor 'blk.0.attn_k.weight' (F32) has the value inf at row 0, column 1; finite numbers "
            "are accepted, the file may be damaged"
        )
