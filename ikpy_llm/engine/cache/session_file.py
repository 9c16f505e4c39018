"""A session in a file: the tokens it has read and the cells of its KV cache, so that a text need not be read again.

File (little endian): 8 bytes MAGIC, u32 version, u32 length of a JSON header, the header, tokens i32[n_tokens], for
every layer the used cells of its keys, then of its values (head by head, kv_cache.KVCache.parts), u32 CRC-32 of all
before it. The header says what the cells mean: model, layers, machine layout. Nothing in a file is used before it
equals what the open model has, so every size is the session's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from ikpy_llm import files, leftovers
from ikpy_llm.errors import IkpyError, shown
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.simd import target

MAGIC, VERSION = b"ikpy-kv\0", 2
SESSION = files.Kind("a session of ikpy", re.escape(MAGIC))
FIXED = struct.Struct("<8sII")
MOST_HEADER = 1 << 20  # bytes; 100 per layer are usual
SAMPLE = 64  # bytes of every tensor that count into the model's fingerprint


def save(path, session, tokens: list[int]) -> int:
    """Write the first len(tokens) positions of a session, which hold `tokens`; the bytes of the file.

    The old file stays until the new one is complete; a new one is for its owner only. IkpyError for more tokens than
    there are positions, positions a sliding window has dropped, and a file that cannot be written.
    """
    path, n = Path(path), len(tokens)
    if not session.holds(n):
        raise IkpyError(
            f"{path}: {n} tokens cannot be saved: the cache has {session.position} positions, and layers with a "
            "sliding window hold only the newest"
        )
    head, crc = json.dumps(description(session, n, session.written)).encode(), 0
    cells = _cells(session, n, session.written)
    leftovers.sweep(path.parent)
    with files.written(path, kind=SESSION, mode=0o600) as file:
        for part in (FIXED.pack(MAGIC, VERSION, len(head)), head, np.asarray(tokens, "<i4"), *cells):
            crc = zlib.crc32(part, crc)
            file.write(part)
        file.write(struct.pack("<I", crc))
        return file.tell()


def load(path, session) -> list[int]:
    """Fill a session from a file; the tokens of the positions it has then.

    IkpyError, one line, for a file that cannot be read, is none of ours, is cut off or damaged, or was written for
    another model, context, cache or kind of CPU. The session is then empty, or as it was if nothing was read into it.
    """
    path = Path(path)
    try:
        with os.fdopen(files.opened(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _load(path, file, size, session)
    except OSError as error:
        raise IkpyError(f"{path}: {error.strerror or error}") from None


def _load(path: Path, file, size: int, session) -> list[int]:
    fixed = file.read(FIXED.size)
    if len(fixed) < FIXED.size or fixed[: len(MAGIC)] != MAGIC:
        raise IkpyError(f"{path}: not a session of ikpy (--prompt-cache)")
    _, version, n_header = FIXED.unpack(fixed)
    if version != VERSION:
        raise IkpyError(f"{path}: session file of version {version}; accepted: {VERSION}")
    head = file.read(n_header) if n_header <= MOST_HEADER else b""
    try:
        found = json.loads(head)
        n = found["n_tokens"]
        if type(n) is not int or not 0 <= n < 1 << 31:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise IkpyError(f"{path}: damaged session file: its header cannot be read") from None
    if n > session.n_ctx:
        raise IkpyError(
            f"{path}: a session of {n} tokens does not fit into the context of {session.n_ctx} positions; choose a "
            "larger one (-c)"
        )
    _compare(path, found, description(session, n, n))
    tokens = np.zeros(n, "<i4")
    parts = [tokens, *_cells(session, n, found["written"])]
    expected = FIXED.size + n_header + sum(part.nbytes for part in parts) + 4
    if size != expected:
        raise IkpyError(f"{path}: damaged session file: it has {size} bytes, {expected} are expected")
    crc = zlib.crc32(head, zlib.crc32(fixed))
    session.rewind(0)
    for part in parts:
        if file.readinto(memoryview(part).cast("B")) != part.nbytes:
            raise IkpyError(f"{path}: damaged session file: it ends too early")
        crc = zlib.crc32(part, crc)
    if file.read(4) != struct.pack("<I", crc):
        raise IkpyError(f"{path}: damaged session file: its checksum is wrong")
    if n and not 0 <= tokens.min() <= tokens.max() < session.n_vocab:
        raise IkpyError(f"{path}: damaged session file: it has tokens outside the vocabulary")
    session.restored(n, found["written"])
    return tokens.tolist()


def _cells(session, n: int, written: int) -> list[np.ndarray]:
    """The cells of all layers that hold n positions, of rings those that were written, as views of the cache."""
    layers = session.kv.layers.items()
    return [p for i, x in layers for p in session.kv.parts(i, n if x.n_cells == session.n_ctx else written)]


def description(session, n: int, written: int) -> dict:
    """What a file says about itself. written: where the positions ended that rings have seen, n or more."""
    layers = []
    for number, layer in session.kv.layers.items():
        one = dataclasses.asdict(layer)
        if layer.n_cells == session.n_ctx:  # a cell for each position, however many there are
            del one["n_cells"]
        layers.append({"layer": number, **one})
    machine = target.current()
    return {
        "model": fingerprint(session),
        "architecture": session.params.architecture,
        "target": machine.name + " with pairs of 16 bits" * machine.pairs16,
        "panel": layout.width(),
        "layers": layers,
        "n_tokens": n,
        "written": written,
    }


def _compare(path: Path, found: dict, own: dict) -> None:
    """IkpyError that says what a file was written for, if that is not this session."""
    if type(found.get("written")) is not int or not own["n_tokens"] <= found["written"] < 1 << 31:
        raise IkpyError(f"{path}: damaged session file: 'written' in its header is {shown(found.get('written'))}")
    if found.get("model") != own["model"] or found.get("architecture") != own["architecture"]:
        what = shown(found.get("architecture"))
        raise IkpyError(
            f"{path}: the session of another model ({what}), or of this one run otherwise (-ser, --pp-requant)"
        )
    for key, what in (("target", "kind of CPU"), ("panel", "panel width")):
        if found.get(key) != own[key]:
            raise IkpyError(f"{path}: a session for {shown(found.get(key))} as {what}; here it is {shown(own[key])}")
    theirs = found.get("layers")
    if not isinstance(theirs, list) or len(theirs) != len(own["layers"]):
        raise IkpyError(f"{path}: a session with a KV cache of other layers (-mla, --swa-full)")
    for one, mine in zip(theirs, own["layers"], strict=True):
        if one == mine:
            continue
        one = one if isinstance(one, dict) else {}
        name = next(k for k in sorted(one.keys() | mine.keys()) if one.get(k) != mine.get(k))
        raise IkpyError(
            f"{path}: a session with another KV cache (-c, -ub, -ctk, -ctv): {shown(name)} of layer {mine['layer']} is "
            f"{shown(one.get(name))}, here {shown(mine.get(name))}"
        )


def fingerprint(session) -> str:
    """A hash of what decides a session's cells: metadata, names, types and shapes of the tensors and bytes from the
    middle of each, the rotations in use, and settings that change results.
    """
    session.file.check_unchanged()
    h = hashlib.blake2b(digest_size=16)
    for key, value in sorted(session.file.meta.items()):
        if not key.startswith("tokenizer."):
            h.update(f"{key}={value!r}\n".encode())
    for name, t in sorted(session.file.tensors.items()):
        t = getattr(t, "stored", t)  # as in the file, not taken apart
        h.update(f"{name} {t.type_name} {tuple(t.shape)}\n".encode())
        h.update(t.data[t.n_bytes // 2 :][:SAMPLE].tobytes())
    options = session.options
    h.update(repr([sorted(map(repr, session.angles)), options.expert_limits(), options.pp_requant]).encode())
    return h.hexdigest()
