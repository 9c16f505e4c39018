"""GGUF files: good ones are read exactly; whatever is wrong with a bad one is one clear line."""

import os
import struct

import numpy as np
import pytest
from gguf_writer import Spoilt, U, build, string, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ikpy_llm.engine.file import header
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.errors import IkpyError, ModelFileError, shown
from ikpy_llm.kernels.quants import table

META = {
    "general.architecture": "llama",
    "a.u8": U(0, 255),
    "a.i8": U(1, -1),
    "a.u16": U(2, 65535),
    "a.i16": U(3, -2),
    "a.u32": 7,
    "a.i32": U(5, -7),
    "a.f32": 0.5,
    "a.bool": True,
    "a.u64": U(10, 2**64 - 1),
    "a.i64": U(11, -(2**63)),
    "a.f64": U(12, 0.1),
    "a.ints": [3, -4],
    "a.floats": [1.5, 2.5],
    "a.bools": [True, False],
    "a.strings": ["ä", "", "\n"],
    "a.empty": [],
}
TENSORS = {
    "x": ("F32", (2, 3), np.arange(6, dtype="<f4").tobytes()),
    "y": ("Q8_0", (2, 64), bytes(range(136))),
    "z": ("F16", (5,), bytes(10)),
    "e": ("Q4_0", (2, 3, 32), bytes(108)),
}


def refused(path, *words) -> str:
    """Open `path`, expect a one-line ModelFileError with all `words`; return the line."""
    with pytest.raises(ModelFileError) as caught:
        open_gguf(path)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable() and len(line) < 500
    assert line.startswith(str(path)[:3]) and all(word in line for word in words), line
    return line


@pytest.mark.parametrize("version", [2, 3])
def test_reads_what_was_written(tmp_path, version):
    path = write(tmp_path / "m.gguf", META, TENSORS, Spoilt(version=version))
    model = open_gguf(path)
    assert model.path == path
    assert set(model.meta) == set(META)
    for key, value in META.items():
        read = model.meta[key]
        value = value.value if isinstance(value, U) else value
        assert (list(read) if isinstance(value, list) else read) == value, key
    assert type(model.meta["a.bool"]) is bool and type(model.meta["a.f32"]) is float
    assert list(model.tensors) == list(TENSORS)
    for name, (type_name, shape, raw) in TENSORS.items():
        tensor = model.tensors[name]
        assert (tensor.type_name, tensor.shape, tensor.n_bytes) == (type_name, shape, len(raw))
        assert tensor.type_id == table.by_name(type_name).id and tensor.offset % 32 == 0
        assert tensor.data.tobytes() == raw and not tensor.data.flags.writeable
    assert model.n_bytes == sum(len(raw) for _, _, raw in TENSORS.values())


def test_data_outlives_the_file_object_and_release_keeps_it(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, 4 * 3 * 4096, np.uint8).tobytes()
    tensor = open_gguf(write(tmp_path / "m.gguf", {}, {"w": ("F32", (3, 4096), raw)})).tensors["w"]
    assert tensor.data.tobytes() == raw
    tensor.release()
    assert tensor.data.tobytes() == raw


@pytest.mark.parametrize("alignment", [1, 64, 4096])
def test_alignment(tmp_path, alignment):
    model = open_gguf(write(tmp_path / "m.gguf", {"general.alignment": alignment}, TENSORS))
    assert all(tensor.offset % alignment == 0 for tensor in model.tensors.values())
    assert model.tensors["y"].data.tobytes() == TENSORS["y"][2]


def test_header_longer_than_the_first_read(tmp_path):
    words = [f"w{i}" * 50 for i in range(40_000)]  # 9 MB
    model = open_gguf(write(tmp_path / "m.gguf", {"words": words, "last": 1}, TENSORS))
    assert list(model.meta["words"]) == words and model.meta["last"] == 1
    assert model.meta["words"].raw[7] == words[7].encode() and len(model.meta["words"]) == 40_000


def test_no_tensors_and_no_keys(tmp_path):
    model = open_gguf(write(tmp_path / "m.gguf", {}, {}))
    assert not model.meta and not model.tensors


def test_changed_file_is_noticed(tmp_path):
    path = write(tmp_path / "m.gguf", META, TENSORS)
    model = open_gguf(path)
    model.check_unchanged()
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelFileError, match="changed"):
        model.check_unchanged()


# --- files that are no GGUF file -----------------------------------------------------------------------------------


def test_not_a_file(tmp_path):
    refused(tmp_path / "missing.gguf", "No such file")
    refused(tmp_path, "not a regular file")
    with pytest.raises(ModelFileError):
        open_gguf("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")  # must not block
        refused(tmp_path / "fifo", "not a regular file")


def test_every_truncation_is_refused(tmp_path):
    whole = build(META, TENSORS)
    path = tmp_path / "m.gguf"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        refused(path)
    path.write_bytes(whole + b"trailing bytes are allowed")
    open_gguf(path)


HEADERS = {
    "wrong magic": (Spoilt(magic=b"GGML"), "GGML"),
    "magic is escaped": (Spoilt(magic=b"\x1b[2J"), "x1b"),
    "version 1": (Spoilt(version=1), "version 1"),
    "version 4": (Spoilt(version=4), "version 4"),
    "big-endian": (Spoilt(version=3 << 24), "big-endian"),
    "2^60 keys": (Spoilt(n_kv=2**60), "keys"),
    "2^60 tensors": (Spoilt(n_tensors=2**60), "tensors"),
    "more keys than bytes": (Spoilt(n_kv=60_000), "keys"),
    "more tensors than bytes": (Spoilt(n_tensors=60_000), "tensors"),
    "one key too many": (Spoilt(n_kv=len(META) + 1), ""),
    "one tensor too many": (Spoilt(n_tensors=len(TENSORS) + 1), ""),
    "duplicate key": (Spoilt(extra_pairs=[("a.u32", 8)]), "'a.u32' occurs twice"),
    "empty key": (Spoilt(extra_pairs=[("", 8)]), "empty"),
    "key is not UTF-8": (Spoilt(extra_pairs=[(b"\xff", 8)]), "UTF-8"),
    "key of 65,536 bytes": (Spoilt(extra_pairs=[("k" * 65_536, 8)]), "65536"),
    "text is not UTF-8": (Spoilt(extra_pairs=[("tokenizer.k", b"\xc3(")]), "'tokenizer.k'", "UTF-8"),
    "unknown value type": (Spoilt(extra_pairs=[("k", U(13, b"\0\0\0\0"))]), "type 13"),
    "truth value 2": (Spoilt(extra_pairs=[("k", U(7, b"\2"))]), "truth value 2"),
    "truth values 2": (Spoilt(extra_pairs=[("k", U(9, struct.pack("<IQ", 7, 2) + b"\1\2"))]), "truth value 2"),
    "nested array": (Spoilt(extra_pairs=[("k", U(9, struct.pack("<IQ", 9, 1) + bytes(20)))]), "array of arrays"),
    "array of unknown": (Spoilt(extra_pairs=[("k", U(9, struct.pack("<IQ", 77, 1) + bytes(20)))]), "type 77"),
    "array of 2^60 numbers": (Spoilt(extra_pairs=[("k", U(9, struct.pack("<IQ", 4, 2**60)))]), "elements"),
    "array of 2^24 strings": (Spoilt(extra_pairs=[("k", U(9, struct.pack("<IQ", 8, 2**24)))]), "truncated"),
    "array string of 2^63 bytes": (
        Spoilt(extra_pairs=[("k", U(9, struct.pack("<IQQ", 8, 1, 2**63) + bytes(64)))]),
        "bytes",
    ),
    "array string past the end": (
        Spoilt(extra_pairs=[("k", U(9, struct.pack("<IQQ", 8, 1, 2**20) + bytes(64)))]),
        "truncated",
    ),
    "duplicate tensor": (Spoilt(extra_tensors=[("x", ("F32", (1, 8), bytes(32)))]), "'x' occurs twice"),
    "tensor without a name": (Spoilt(extra_tensors=[("", ("F32", (1, 8), bytes(32)))]), "name"),
    "name with NUL": (Spoilt(extra_tensors=[("a\0b", ("F32", (1, 8), bytes(32)))]), "NUL"),
    "name of 64 bytes": (Spoilt(extra_tensors=[("n" * 64, ("F32", (1, 8), bytes(32)))]), "64"),
    "name is not UTF-8": (Spoilt(extra_tensors=[(b"\xff", ("F32", (1, 8), bytes(32)))]), "UTF-8"),
    "unknown type": (Spoilt(types={"y": 5}), "'y'", "type 5", "0-3"),
    "type 2^32-1": (Spoilt(types={"y": 2**32 - 1}), "type 4294967295"),
    "no dimension": (Spoilt(n_dims={"y": 0}), "0 dimensions"),
    "five dimensions": (Spoilt(n_dims={"y": 5}), "5 dimensions"),
    "2^31 dimensions": (Spoilt(n_dims={"y": 2**31}), "dimensions"),
    "dimension 0": (Spoilt(dims={"y": (64, 0)}), "[0, 64]"),
    "dimension 2^40": (Spoilt(dims={"y": (2**40, 2)}), "1099511627776"),
    "dimension 2^64-1": (Spoilt(dims={"y": (64, 2**64 - 1)}), "'y'"),
    "product over 2^64": (Spoilt(dims={"y": (2**30, 2**30, 2**30, 2**30)}), "'y'", "ends at"),
    "columns no multiple of block": (Spoilt(dims={"y": (48, 2)}), "multiples of 32"),
    "rows no multiple of interleave": (Spoilt(types={"y": table.by_name("Q8_0_R8").id}), "multiple of 8 rows"),
    "misaligned": (Spoilt(offsets={"y": 33}), "multiple of 32"),
    "outside the file": (Spoilt(offsets={"y": 2**40}), "ends at"),
    "offset 2^64-32": (Spoilt(offsets={"y": 2**64 - 32}), "ends at"),
    "a little outside": (Spoilt(offsets={"e": 320}), "ends at"),
    "overlapping": (Spoilt(offsets={"y": 0}), "overlap"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_malformed(tmp_path, case):
    spoilt, *words = HEADERS[case]
    refused(write(tmp_path / "m.gguf", META, TENSORS, spoilt), *words)


@pytest.mark.parametrize("alignment", [0, 3, 1 << 21, "32", 2.0, True, U(5, -8)])
def test_bad_alignment(tmp_path, alignment):
    refused(write(tmp_path / "m.gguf", {"general.alignment": alignment}, TENSORS), "general.alignment")


def test_huge_string_claim(tmp_path):
    path = tmp_path / "m.gguf"
    for n in (2**63, 2**64 - 1, 2**27, 1000):
        pair = string("k") + struct.pack("<IQ", 8, n)
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair + bytes(100))
        refused(path, "'k'")


def test_strings_of_every_length(tmp_path, monkeypatch):
    """Plain ones are found at once, the others one by one: empty, with NUL, longer than 255 bytes, across windows."""
    rng = np.random.default_rng(0)
    plain = ["".join(map(chr, rng.integers(1, 300, n))) for n in rng.integers(1, 60, 3000)]
    odd = ["", "\0", "a\0\0\0\0\0\0\0b", "x" * 255, "x" * 256, "y" * 70000, "\1"]
    mixed = [odd[i] if i < len(odd) else text for i, text in zip(rng.integers(0, 40, 3000), plain, strict=True)]
    for window in (64, 1000, header.WINDOW):
        monkeypatch.setattr(header, "WINDOW", window)
        meta = {"a": plain, "b": mixed, "c": odd, "d": [], "e": ["z"]}
        model = open_gguf(write(tmp_path / "m.gguf", meta, {}))
        assert {key: list(model.meta[key]) for key in meta} == meta


def test_lazy_strings_are_checked_when_read(tmp_path):
    model = open_gguf(write(tmp_path / "m.gguf", {"k": ["good"]}, {}))
    assert model.meta["k"] == ["good"] and model.meta["k"][0] == "good"
    body = struct.pack("<IQ", 8, 1) + string(b"\xff\xfe")
    model = open_gguf(write(tmp_path / "n.gguf", {"k": U(9, body)}, {}))
    with pytest.raises(ModelFileError, match=r"'k'.*UTF-8"):
        list(model.meta["k"])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_never_crash(tmp_path_factory, data):
    raw = bytearray(build(META, TENSORS))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(raw)
    try:
        model = open_gguf(path)
        for value in model.meta.values():
            repr(list(value) if hasattr(value, "__len__") else value)
        for tensor in model.tensors.values():
            tensor.data.sum()
    except ModelFileError as error:
        assert "\n" not in str(error)


# --- split files ---------------------------------------------------------------------------------------------------


def split_parts(folder, n=3, **changed):
    """Write a model of `n` parts with one tensor each; `changed` maps p<number from 0> to replaced metadata."""
    paths = []
    for i in range(n):
        meta = {"split.no": U(2, i), "split.count": U(2, n), "split.tensors.count": U(5, n), "only": i}
        meta |= changed.get(f"p{i}", {})
        tensors = {f"t{i}": ("F32", (1, 8), bytes([i]) * 32)}
        paths.append(write(folder / f"big-{i + 1:05}-of-{n:05}.gguf", meta, tensors))
    return paths


def test_split_model(tmp_path):
    paths = split_parts(tmp_path)
    model = open_gguf(paths[0])
    assert model.meta["only"] == 0
    assert {name: tensor.data[0] for name, tensor in model.tensors.items()} == {"t0": 0, "t1": 1, "t2": 2}
    model.check_unchanged()
    os.utime(paths[2], (1, 1))
    with pytest.raises(ModelFileError, match="00003"):
        model.check_unchanged()


def test_what_leaves_the_bytes_alone_is_no_change(tmp_path):
    """A model that is renamed, linked, hidden or replaced by a newer one does not end a program that uses it."""
    path = write(tmp_path / "m.gguf", {}, {"t": ("F32", (1, 8), bytes(32))})
    model, old = open_gguf(path), path.stat()
    path.chmod(0o600)
    os.utime(path, ns=(1, old.st_mtime_ns))  # read at another time
    (tmp_path / "second").hardlink_to(path)
    path.rename(tmp_path / "away")
    model.check_unchanged()
    path.write_bytes(b"a new file under the name of the old one")
    (tmp_path / "second").unlink()
    (tmp_path / "away").unlink()
    model.check_unchanged()
    assert bytes(model.tensors["t"].data) == bytes(32)


def test_a_change_is_noticed_by_size_or_time(tmp_path):
    for change in (lambda file: file.write(b"X"), lambda file: file.truncate(100)):
        path = write(tmp_path / "m.gguf", {}, {"t": ("F32", (1, 8), bytes(32))})
        os.utime(path, (1, 1))  # the clock of file systems has ticks of some milliseconds
        model = open_gguf(path)
        with path.open("r+b") as file:
            change(file)
        with pytest.raises(ModelFileError, match="changed while it was in use"):
            model.check_unchanged()


def test_split_errors(tmp_path):
    paths = split_parts(tmp_path)
    refused(paths[1], "pass the first", "big-00001-of-00003.gguf")
    renamed = tmp_path / "other.gguf"
    renamed.write_bytes(paths[0].read_bytes())
    refused(renamed, "-00001-of-00003.gguf")
    paths[2].rename(tmp_path / "away")
    assert "big-00003-of-00003.gguf" in refused(paths[0], "missing", "3 parts")
    if hasattr(os, "mkfifo"):
        os.mkfifo(paths[2])
        assert "big-00003-of-00003.gguf" in refused(paths[0], "Is a FIFO, not a regular file")
    (tmp_path / "away").rename(paths[2])
    split_parts(tmp_path, p1={"split.no": U(2, 2)})
    refused(paths[0], "split.no")
    split_parts(tmp_path, p1={"split.count": U(2, 4)})
    refused(paths[0], "split.count")
    split_parts(tmp_path, p0={"split.tensors.count": U(5, 9)})
    refused(paths[0], "split.tensors.count", "9")
    split_parts(tmp_path, p0={"split.count": "3"})
    refused(paths[0], "split.count")
    split_parts(tmp_path)
    write(paths[1], {"split.no": U(2, 1), "split.count": U(2, 3)}, {"t0": ("F32", (1, 8), bytes(32))})
    refused(paths[0], "'t0'", "earlier part")


# --- type table and messages ---------------------------------------------------------------------------------------


def test_type_table():
    assert len(table.BY_ID) == 95 and {*table.BY_NAME.values()} - {*table.BY_ID.values()} == {
        info for info in table.BY_NAME.values() if info.id < 0
    }
    assert table.row_bytes("Q4_K", 512) == 288 and table.row_bytes("IQ4_KS", 256) == 140
    assert table.by_id(12).name == "Q4_K" and table.by_name("q4_k").id == 12 and table.by_name("Q1_0").id == 41
    assert table.tensor_bytes("I2_S", (4, 128)) == 128 + 32
    assert table.tensor_bytes("Q4_0_R8", (2, 8, 64)) == 16 * 36
    for name, shape in (("Q4_K", (2, 128)), ("Q4_K", (2, 0)), ("Q4_0_R8", (2, 4, 32)), ("I2_S", (1, 100))):
        with pytest.raises(ValueError):
            table.tensor_bytes(name, shape)
    with pytest.raises(KeyError):
        table.by_name("Q9_9")


def test_shown():
    assert issubclass(ModelFileError, IkpyError)
    assert shown("a\nb\x1b") == r"'a\nb\x1b'"
    assert shown("x" * 100) == "'" + "x" * 80 + "...'"
    assert shown("x" * 100, None) == "'" + "x" * 100 + "'"
    assert shown(b"\xffGG") == r"'\ufffdGG'"
    assert shown(12) == "12"
