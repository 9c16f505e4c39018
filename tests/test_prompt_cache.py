"""Sessions in files: what is read back continues with the same bits; every other file is refused in one line."""

import functools
import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
import tiny_deepseek2
import tiny_gemma3
import tiny_llama
import tiny_model
from sessions import session

from ikpy_llm import Model
from ikpy_llm.engine.cache import session_file
from ikpy_llm.errors import IkpyError

TOKENS = np.random.default_rng(5).integers(0, tiny_llama.N_VOCAB, 700).tolist()
WRITERS = {
    "llama": (tiny_llama.write, {}),
    "gemma3": (tiny_gemma3.write, {}),
    "deepseek2": (tiny_deepseek2.write, {"mla": 1}),
    "4 bits": (
        functools.partial(tiny_llama.write, n_head=4, n_head_kv=2, head_dim=32),
        {"cache_type_k": "q4_0", "cache_type_v": "iq4_nl", "khad": True, "vhad": True},
    ),
}


@pytest.fixture(scope="module")
def paths(folder):
    return {name: write(folder / f"{name}.gguf") for name, (write, _) in WRITERS.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_read_back_continues_with_the_same_bits(paths, tmp_path, name):
    """Rings that have moved on, too; with other threads, and another context where no ring is."""
    options, file = {"n_ctx": 1024, "n_ubatch": 64} | WRITERS[name][1], tmp_path / "s"
    n = 600 if name == "gemma3" else 300
    with session(paths[name], **options) as s:
        s.eval(TOKENS[:n])
        size = session_file.save(file, s, TOKENS[:n])
        assert size == file.stat().st_size < 1.1 * s.kv.n_bytes and list(tmp_path.iterdir()) == [file]
        expected = s.eval(TOKENS[n : n + 40], all_logits=True)
    others = [options | {"threads": 3}] + ([] if name == "gemma3" else [options | {"n_ctx": 512, "n_ubatch": 32}])
    for other in others:
        with session(paths[name], **other) as s:
            s.eval([1, 2, 3])
            assert session_file.load(file, s) == TOKENS[:n] and s.position == n
            np.testing.assert_array_equal(s.eval(TOKENS[n : n + 40], all_logits=True), expected)
            s.rewind(n)
            np.testing.assert_array_equal(s.eval(TOKENS[n : n + 1])[0], expected[0])


def test_part_of_a_session_is_saved_where_it_is_whole(paths, tmp_path):
    with session(paths["llama"]) as s:
        s.eval(TOKENS[:300])
        session_file.save(tmp_path / "s", s, TOKENS[:280])
        session_file.load(tmp_path / "s", s)
        assert s.position == 280
        with pytest.raises(IkpyError, match="281 tokens cannot be saved: the cache has 280 positions"):
            session_file.save(tmp_path / "s", s, TOKENS[:281])
    with session(paths["gemma3"], n_ctx=1024, n_ubatch=64) as s:
        s.eval(TOKENS[:600])
        session_file.save(tmp_path / "s", s, TOKENS[:590])
        with pytest.raises(IkpyError, match="200 tokens cannot be saved"):
            session_file.save(tmp_path / "s", s, TOKENS[:200])
        assert session_file.load(tmp_path / "s", s) == TOKENS[:590]
        with pytest.raises(IkpyError, match="cannot go back to position 200"):
            s.rewind(200)


@pytest.fixture(scope="module")
def saved(paths, folder):
    """Bytes of a session of the tiny llama."""
    with session(paths["llama"], n_ctx=256) as s:
        s.eval(TOKENS[:20])
        session_file.save(folder / "saved", s, TOKENS[:20])
    return (folder / "saved").read_bytes()


def changed(raw: bytes, change: dict, tokens=None) -> bytes:
    """A file whose header says something else, with a checksum that fits."""
    (n,) = struct.unpack("<I", raw[12:16])
    head = json.dumps(json.loads(raw[16 : 16 + n]) | change).encode()
    body = (
        raw[16 + n : -4] if tokens is None else np.asarray(tokens, "<i4").tobytes() + raw[16 + n + 4 * len(tokens) : -4]
    )
    out = raw[:12] + struct.pack("<I", len(head)) + head + body
    return out + struct.pack("<I", zlib.crc32(out))


REFUSED = {
    "empty": (lambda raw: b"", "not a session of ikpy"),
    "another file": (lambda raw: b"GGUF" + bytes(100), "not a session of ikpy"),
    "version": (lambda raw: raw[:8] + b"\1" + raw[9:], "session file of version 1; accepted: 2"),
    "header cut off": (lambda raw: raw[:100], "damaged session file: its header cannot be read"),
    "header too long": (lambda raw: raw[:12] + b"\xff\xff\xff\xff" + raw[16:], "its header cannot be read"),
    "header of another kind": (lambda raw: raw[:12] + b"\2\0\0\0[]" + raw[16:], "its header cannot be read"),
    "no number of tokens": (lambda raw: changed(raw, {"n_tokens": "20"}), "its header cannot be read"),
    "negative": (lambda raw: changed(raw, {"n_tokens": -1}), "its header cannot be read"),
    "too many": (lambda raw: changed(raw, {"n_tokens": 257}), "257 tokens does not fit into the context of 256"),
    "fewer than it says": (lambda raw: changed(raw, {"n_tokens": 30, "written": 30}), "bytes, .* are expected"),
    "cells": (lambda raw: changed(raw, {"written": 3}), "'written' in its header is 3"),
    "model": (lambda raw: changed(raw, {"model": "0" * 32}), "the session of another model"),
    "CPU": (lambda raw: changed(raw, {"target": "mips"}), "a session for 'mips' as kind of CPU; here it is '"),
    "panels": (lambda raw: changed(raw, {"panel": 3}), "a session for 3 as panel width; here it is "),
    "no layers": (lambda raw: changed(raw, {"layers": []}), "a KV cache of other layers"),
    "layers of another kind": (
        lambda raw: changed(raw, {"layers": [1, 2]}),
        "another KV cache .*'k_dim' of layer 0 is None",
    ),
    "cut off": (lambda raw: raw[:-5], "bytes, .* are expected"),
    "too long": (lambda raw: raw + b"x", "bytes, .* are expected"),
    "checksum": (lambda raw: raw[:-10] + bytes([raw[-10] ^ 1]) + raw[-9:], "its checksum is wrong"),
    "tokens": (lambda raw: changed(raw, {}, [70] * 20), "tokens outside the vocabulary"),
}


@pytest.fixture(scope="module")
def reader(paths):
    with session(paths["llama"], n_ctx=256) as s:
        yield s


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused(saved, reader, tmp_path, case):
    change, message = REFUSED[case]
    file = tmp_path / "bad"
    file.write_bytes(change(saved))
    with pytest.raises(IkpyError, match=message) as error:
        session_file.load(file, reader)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
    file.write_bytes(changed(saved, {}))
    assert session_file.load(file, reader) == TOKENS[:20]


def test_a_changed_bit_is_found_wherever_it_is(saved, reader, tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "bad"
    for at in [*range(16), *rng.integers(16, len(saved), 60)]:
        raw = bytearray(saved)
        raw[at] ^= 1 << rng.integers(8)
        file.write_bytes(raw)
        with pytest.raises(IkpyError):
            session_file.load(file, reader)


def test_other_models_and_caches_are_refused(saved, paths, tmp_path):
    file = tmp_path / "s"
    file.write_bytes(saved)
    other = tiny_llama.write(tmp_path / "other.gguf", seed=1)
    scaled = tiny_llama.write(tmp_path / "scaled.gguf", rope__scaling__factor=2.0)
    settings = ((paths["llama"], {"pp_requant": True}), (paths["llama"], {"ser": "1,0.5"}))
    for path, options in ((other, {}), (scaled, {}), (paths["gemma3"], {}), *settings):
        with session(path, **options) as s, pytest.raises(IkpyError, match="the session of another model"):
            session_file.load(file, s)
    with session(paths["gemma3"], n_ctx=1024, n_ubatch=64) as s:
        s.eval(TOKENS[:20])
        session_file.save(file, s, TOKENS[:20])
    message = r"another KV cache \(-c, -ub, -ctk, -ctv\): 'n_cells' of layer 0 is 256, here 512"
    with session(paths["gemma3"], n_ctx=1024, n_ubatch=400) as s, pytest.raises(IkpyError, match=message):
        session_file.load(file, s)
    with session(paths["deepseek2"], mla=1) as s:
        s.eval(TOKENS[:20])
        session_file.save(file, s, TOKENS[:20])
    with session(paths["deepseek2"], mla=0) as s, pytest.raises(IkpyError, match="another KV cache"):
        session_file.load(file, s)
    file.write_bytes(saved)
    with session(paths["llama"], cache_type_k="bf16") as s, pytest.raises(IkpyError, match="another KV cache") as error:
        session_file.load(file, s)
    assert "'types' of layer 0 is {'k': 'f16', " in str(error.value) and "here {'k': 'bf16', " in str(error.value)


def test_files_that_cannot_be_written_or_read(reader, tmp_path):
    reader.rewind(0)
    reader.eval(TOKENS[:3])
    with pytest.raises(IkpyError, match="No such file or directory"):
        session_file.save(tmp_path / "none" / "s", reader, TOKENS[:3])
    with pytest.raises(IkpyError, match="Is a directory"):
        session_file.save(tmp_path, reader, TOKENS[:3])
    os.mkfifo(tmp_path / "fifo")
    for path, why in (("none", "No such file"), (".", "Is a directory"), ("fifo", "Is a FIFO, not a regular file")):
        with pytest.raises(IkpyError, match=why):
            session_file.load(tmp_path / path, reader)
    (tmp_path / "fifo").unlink()
    assert not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob(tmp_path.name + ".*"))


# --- API and command ---


@pytest.fixture(scope="module")
def model(folder):
    return tiny_model.write(folder / "tiny.gguf")


def test_sessions_of_the_api(model, tmp_path):
    with Model.load(model, threads=1, n_ctx=256) as m:
        with pytest.raises(IkpyError, match="no text in the cache"):
            m.save_session(tmp_path / "s")
        read = []
        m.after_prompt(lambda: read.append(m.cached_tokens))
        expected = "".join(m.generate("the end of it", n_predict=12, temp=0, ignore_eos=True))
        assert read == [m.tokenize("the end of it")]
        m.save_session(tmp_path / "s")
        tokens = m.cached_tokens
        m.session.eval([1])
        with pytest.raises(IkpyError, match="no text in the cache"):
            m.save_session(tmp_path / "s")
    with Model.load(model, threads=1, n_ctx=256) as m:
        assert m.load_session(tmp_path / "s") == tokens == m.cached_tokens and len(tokens) == len(read[0]) + 11
        assert "".join(m.generate("the end of it", n_predict=12, temp=0, ignore_eos=True)) == expected
        assert (m.timings.n_prompt, m.timings.n_eval) == (0, 12)  # of the prompt its last token again


def run(ikpy, model, *words):
    done = ikpy("run", "-m", model, "-n", "8", "--temp", "0", "--ignore-eos", "-c", "256", *words)
    assert done.returncode == 0, done.stderr
    n_prompt, n_gen = (int(n) for n in re.findall(r"eval time = .* / +(\d+) tokens", done.stderr))
    said = [line.split(": ")[2] for line in done.stderr.splitlines() if line.startswith("prompt cache: ")]
    return done.stdout, n_prompt, n_gen, said


def test_prompt_cache_of_the_command(ikpy, model, tmp_path):
    file, words = tmp_path / "s", ["-p", "the end of all", "--prompt-cache", tmp_path / "s"]
    text, n, _, said = run(ikpy, model, *words)
    assert (n, said[0]) == (13, "new") and said[1].startswith("13 tokens saved, ")
    before = file.read_bytes()
    assert run(ikpy, model, *words) == (text, 0, 8, ["13 tokens"])
    longer = ["-p", "the end of all that", "--prompt-cache", file, "--prompt-cache-ro"]
    assert run(ikpy, model, *longer)[1:] == (4, 7, ["13 tokens"]) and file.read_bytes() == before
    _, n, _, said = run(ikpy, model, *words, "--prompt-cache-all")
    assert n == 0 and said == ["13 tokens", f"20 tokens saved, {file.stat().st_size / 1e6:.1f} MB"]
    more, n, _, said = run(ikpy, model, "--prompt-cache", file, "--prompt-cache-ro")  # goes on where it was left
    assert more.startswith(text.removesuffix("\n")[:-1]) and (n, said) == (0, ["20 tokens"])


@pytest.mark.skipif(os.name != "posix", reason="no FIFOs and devices")
@pytest.mark.parametrize("words", [(), ("--prompt-cache-all",), ("--prompt-cache-ro",)], ids=" ".join)
def test_only_regular_files_are_prompt_caches(ikpy, model, tmp_path, words):
    """One line before the model is loaded; a FIFO is not waited for, a device not replaced."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "folder").mkdir()
    before = os.stat("/dev/null")
    for path, what in (
        ("/dev/null", "a character device"),
        ("/dev/zero", "a character device"),
        (tmp_path / "fifo", "a FIFO"),
        (tmp_path / "link", "a FIFO"),
        (tmp_path / "folder", "a directory"),
    ):
        done = ikpy("run", "-m", model, "-p", "x", "-n", "1", "--prompt-cache", path, *words, timeout=100)
        assert done.returncode == 1
        assert done.stderr == f"error: --prompt-cache {path}: Is {what}, not a regular file\n"
    assert os.path.samestat(before, os.stat("/dev/null"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "folder", "link"]


def test_a_prompt_cache_keeps_its_permissions_and_its_link(ikpy, model, tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    words = ["--prompt-cache", link, "-p"]
    run(ikpy, model, *words, "the end")
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o600
    target.chmod(0o640)
    run(ikpy, model, *words, "the end of all")
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "target"]


def test_errors_of_the_command(ikpy, model, tmp_path):
    (tmp_path / "bad").write_bytes(b"x" * 99)
    for words, message in (
        (["-p", "x", "--prompt-cache-all"], "--prompt-cache-all needs --prompt-cache FNAME"),
        (["-p", "x", "--prompt-cache", tmp_path / "bad"], f"{tmp_path / 'bad'}: not a session of ikpy"),
        (["--prompt-cache", tmp_path / "none"], "no prompt; give -p TEXT"),
    ):
        done = ikpy("run", "-m", model, "-n", "1", *words)
        assert done.returncode == 1 and f"error: {message}" in done.stderr and "Traceback" not in done.stderr
