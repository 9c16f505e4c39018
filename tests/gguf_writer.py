"""Writes small GGUF files, well formed or with single fields spoilt, for tests."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

from ikpy_llm.kernels.quants import table


@dataclass
class U:
    """A metadata value with an explicit GGUF value type."""

    code: int
    value: object


_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def string(text) -> bytes:
    """A GGUF string: u64 length, bytes."""
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _code(value) -> int:
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return 4 if 0 <= value < 2**32 else 11
    return 6 if isinstance(value, float) else 8


def value(item) -> bytes:
    """Type number and bytes of a metadata value: bool, int (u32), float (f32), str, bytes, list, U."""
    if isinstance(item, list):
        code = _code(item[0]) if item else 4
        code = 5 if code == 11 or (code == 4 and any(x < 0 for x in item)) else code
        body = b"".join(string(x) if code == 8 else struct.pack("<" + _FORMATS[code], x) for x in item)
        return struct.pack("<IIQ", 9, code, len(item)) + body
    code, item = (item.code, item.value) if isinstance(item, U) else (_code(item), item)
    if isinstance(item, bytes) and code != 8:
        return struct.pack("<I", code) + item  # raw, for malformed values
    return struct.pack("<I", code) + (string(item) if code == 8 else struct.pack("<" + _FORMATS[code], item))


@dataclass
class Spoilt:
    """What to write instead of the truth; None or missing = the truth."""

    magic: bytes = b"GGUF"
    version: int = 3
    n_kv: int | None = None
    n_tensors: int | None = None
    types: dict = field(default_factory=dict)  # tensor name -> type number
    dims: dict = field(default_factory=dict)  # tensor name -> ggml dims, columns first
    n_dims: dict = field(default_factory=dict)
    offsets: dict = field(default_factory=dict)
    extra_pairs: list = field(default_factory=list)  # (key, value) appended: duplicates
    extra_tensors: list = field(default_factory=list)  # (name, (type, shape, bytes)) appended: duplicates


def build(meta: dict, tensors: dict, spoilt: Spoilt | None = None) -> bytes:
    """A file's bytes. `tensors` maps names to (type name, shape (..., rows, columns), bytes)."""
    spoilt = spoilt or Spoilt()
    alignment = meta.get("general.alignment", 32)
    alignment = alignment if type(alignment) is int and 0 < alignment < 1 << 20 else 32
    pairs = [*meta.items(), *spoilt.extra_pairs]
    entries = [*tensors.items(), *spoilt.extra_tensors]
    n_tensors = len(entries) if spoilt.n_tensors is None else spoilt.n_tensors
    n_kv = len(pairs) if spoilt.n_kv is None else spoilt.n_kv
    head = [spoilt.magic, struct.pack("<IQQ", spoilt.version, n_tensors, n_kv)]
    head += [string(key) + value(item) for key, item in pairs]
    data = bytearray()
    for name, (type_name, shape, raw) in entries:
        dims = spoilt.dims.get(name, tuple(shape)[::-1])
        data += bytes(-len(data) % alignment)
        head.append(string(name) + struct.pack("<I", spoilt.n_dims.get(name, len(dims))))
        head.append(struct.pack(f"<{len(dims)}Q", *dims))
        head.append(
            struct.pack("<IQ", spoilt.types.get(name, table.by_name(type_name).id), spoilt.offsets.get(name, len(data)))
        )
        data += raw
    head = b"".join(head)
    return head + bytes(-len(head) % alignment) + bytes(data)


def write(path, meta: dict, tensors: dict, spoilt: Spoilt | None = None) -> Path:
    """Write `build(...)` to `path` and return it as a Path."""
    path = Path(path)
    path.write_bytes(build(meta, tensors, spoilt))
    return path
