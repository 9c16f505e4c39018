"""Reads the header of a GGUF file (metadata and the tensor list) from untrusted bytes; no number is used unchecked."""

import itertools
import os
import struct

import numpy as np

from ikpy_llm.errors import SHOWN, ModelFileError, shown
from ikpy_llm.kernels.quants import table
from ikpy_llm.text.strings import StringArray

MAX_ITEMS = 65_536  # metadata keys, and tensors
MAX_KEY = 65_535  # bytes
MAX_STRING = 64 << 20  # bytes
MAX_ARRAY = 1 << 24  # elements
MAX_ALIGNMENT = 1 << 20
MAX_DIM = 2**31 - 1
MIN_KV_BYTES = 13  # empty key, type, one byte
MIN_TENSOR_BYTES = 33  # empty name, one dimension
FIRST_READ = 4 << 20  # bytes; the headers of most models fit
WINDOW = 1 << 18  # bytes in which strings are found at once
OTHERS = 256  # strings read one by one where that ends, before it is tried again
KEYS_SHOWN, ITEMS_SHOWN = 200, 6  # keys, and numbers of a list, that the repr of metadata has

STRING, ARRAY, BOOL = 8, 9, 7
# value type -> NumPy type, for all types of fixed size
NUMBERS = dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "u1"))) | {10: "<u8", 11: "<i8", 12: "<f8"}
_FORMATS = {code: struct.Struct("<" + form) for code, form in zip(NUMBERS, "BbHhIifBQqd", strict=True)}
_U32, _U64 = _FORMATS[4], _FORMATS[10]


class Meta(dict):
    """Metadata by key. Its repr has a line for each key, and lists and texts are cut: vocabularies are long."""

    def __repr__(self) -> str:
        lines = [f"{key!r}: {_cut(value)}" for key, value in itertools.islice(self.items(), KEYS_SHOWN)]
        lines += [f"... {len(self)} keys"] * (len(self) > KEYS_SHOWN)
        return "{" + ",\n ".join(lines) + "}"


def _cut(value) -> str:
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{value[:SHOWN]!r}... {len(value)} characters"
    if isinstance(value, list) and len(value) > ITEMS_SHOWN:
        return f"[{', '.join(map(repr, value[:ITEMS_SHOWN]))}, ... {len(value)} numbers]"
    return repr(value)


class Header:
    """Metadata and tensor list of one file.

    `meta` maps keys to int, float, bool, str or a list; long string lists are StringArray. `tensors` is a list of
    (name, TypeInfo, shape with columns last, offset in the file, bytes), all inside the file and apart from each other.
    """

    def __init__(self, fd: int, size: int, path: str):
        self.path, self._fd, self._size = path, fd, size
        self._buf, self._pos = b"", 0
        self._check_magic()
        n_tensors, n_kv = self._u64("the tensor count"), self._u64("the key count")
        self._check_count("keys", n_kv, MIN_KV_BYTES)
        self._check_count("tensors", n_tensors, MIN_TENSOR_BYTES)
        self.meta = Meta()
        self.odd_texts: list[str] = []  # keys whose text is not UTF-8
        for _ in range(n_kv):
            self._read_pair()
        alignment = self._alignment()
        entries = [self._tensor_entry() for _ in range(n_tensors)]
        data = -(-self._pos // alignment) * alignment
        self.tensors = [self._placed(entry, data, alignment) for entry in entries]
        self._check_apart()
        del self._buf

    def _fail(self, text: str):
        raise ModelFileError(f"{self.path}: {text}")

    def _check_magic(self):
        if self._size < 24:
            self._fail(f"not a GGUF file: {self._size} bytes, the smallest has 24")
        magic = self._take(4, "the magic")
        if magic != b"GGUF":
            self._fail(f"not a GGUF file: it starts with {shown(magic)}, not 'GGUF'")
        version = self._u32("the version")
        if version & 0xFFFF == 0:
            self._fail("a big-endian GGUF file; only little-endian files are read")
        if version not in (2, 3):
            self._fail(f"GGUF version {version}; 2 and 3 are read")

    def _check_count(self, what: str, n: int, least: int):
        if n > MAX_ITEMS:
            self._fail(f"{n} {what}; at most {MAX_ITEMS} are read")
        if n * least > self._size:
            self._fail(f"truncated: {n} {what} do not fit into {self._size} bytes")

    # --- bytes -----------------------------------------------------------------------------------------------------

    def _need(self, end: int, what: str):
        """Have the bytes up to position `end` in the buffer, reading more of the file where needed."""
        if end > self._size:
            self._fail(f"truncated: the file of {self._size} bytes ends inside {what}")
        while len(self._buf) < end:
            n = min(max(end, 4 * len(self._buf), FIRST_READ), self._size) - len(self._buf)
            more = os.pread(self._fd, n, len(self._buf)) if hasattr(os, "pread") else self._seek_read(n)
            if not more:
                self._fail("the file became shorter while it was read")
            self._buf += more

    def _seek_read(self, n: int) -> bytes:
        os.lseek(self._fd, len(self._buf), os.SEEK_SET)
        return os.read(self._fd, n)

    def _take(self, n: int, what: str) -> bytes:
        start = self._pos
        self._need(start + n, what)
        self._pos = start + n
        return self._buf[start : start + n]

    def _u32(self, what: str) -> int:
        return _U32.unpack(self._take(4, what))[0]

    def _u64(self, what: str) -> int:
        return _U64.unpack(self._take(8, what))[0]

    def _string(self, what: str, limit: int) -> str:
        n = self._u64(what)
        if n > limit:
            self._fail(f"{what} claims {n} bytes; at most {limit} are read")
        raw = self._take(n, what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._fail(f"{what} is {shown(raw)}, which is not UTF-8")

    def _text(self, key: str, what: str) -> str:
        """The value of a key. Bytes that are not UTF-8, as some descriptions have them, become U+FFFD; not so in what
        texts are made of.
        """
        n = self._u64(what)
        if n > MAX_STRING:
            self._fail(f"{what} claims {n} bytes; at most {MAX_STRING} are read")
        raw = self._take(n, what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            if key.startswith("tokenizer."):
                self._fail(f"{what} is {shown(raw)}, which is not UTF-8")
        self.odd_texts.append(key)
        return raw.decode("utf-8", "replace")

    # --- metadata --------------------------------------------------------------------------------------------------

    def _read_pair(self):
        key = self._string(f"the name of key {len(self.meta)}", MAX_KEY)
        if not key:
            self._fail(f"the name of key {len(self.meta)} is empty")
        if key in self.meta:
            self._fail(f"key {shown(key)} occurs twice")
        what = f"key {shown(key)}"
        code = self._u32(what)
        self.meta[key] = self._array(what) if code == ARRAY else self._value(key, code, what)

    def _value(self, key: str, code: int, what: str):
        if code == STRING:
            return self._text(key, what)
        if code not in NUMBERS:
            self._fail(f"{what} has value type {code}; 0 to 12 are known")
        form = _FORMATS[code]
        (value,) = form.unpack(self._take(form.size, what))
        return self._bool(value, what) if code == BOOL else value

    def _bool(self, value: int, what: str) -> bool:
        if value > 1:
            self._fail(f"{what} is the truth value {value}; 0 and 1 are accepted")
        return value == 1

    def _array(self, what: str):
        code, n = self._u32(what), self._u64(what)
        if code == ARRAY:
            self._fail(f"{what} is an array of arrays; those are not read")
        if code != STRING and code not in NUMBERS:
            self._fail(f"{what} is an array of value type {code}; 0 to 8 and 10 to 12 are known")
        if n > MAX_ARRAY:
            self._fail(f"{what} claims {n} elements; at most {MAX_ARRAY} are read")
        if code == STRING:
            return StringArray(self._strings(n, what), f"{self.path}: {what}")
        form = np.dtype(NUMBERS[code])
        values = np.frombuffer(self._take(n * form.itemsize, what), form)
        if code == BOOL:
            if n:
                self._bool(int(values.max()), what)
            values = values != 0
        return values.tolist()

    def _strings(self, n: int, what: str) -> list[bytes]:
        """The next `n` strings as bytes; the inner loop of opening a model."""
        self._need(self._pos + 8 * n, what)
        raw = []
        while len(raw) < n:
            raw += self._plain_strings(n - len(raw))
            raw += [self._any_string(what) for _ in range(min(n - len(raw), OTHERS))]
        return raw

    def _any_string(self, what: str) -> bytes:
        size = self._u64(what)
        if size > MAX_STRING:
            self._fail(f"{what} has a string of {size} bytes; at most {MAX_STRING} are read")
        return self._take(size, what)

    def _plain_strings(self, n: int) -> list[bytes]:
        """The next strings, at most `n`, as long as they have 1 to 255 bytes and no NUL; perhaps none.

        The only zeros are the upper seven bytes of each length then, so all strings are found at once, and each length
        says whether the next was found where it is.
        """
        self._need(min(self._pos + WINDOW, self._size), "")
        window = np.frombuffer(self._buf, np.uint8, min(WINDOW, self._size - self._pos), self._pos)
        zeros = np.flatnonzero(window == 0)
        zeros = zeros[: len(zeros) // 7 * 7].reshape(-1, 7)[:n]
        lengths = zeros[:, 0] - 1  # where they stand
        ends = lengths + 8 + window[lengths]
        is_next = lengths == np.concatenate([[0], ends[:-1]])
        good = is_next & (zeros[:, 6] - zeros[:, 0] == 6) & (ends <= len(window))
        count = (len(good) if good.all() else int(good.argmin())) - 1  # what follows the last one may be a NUL in it
        if count < 1:
            return []
        size = int(ends[count - 1])
        self._pos += size
        kept = np.ones(size, bool)  # of each length one zero, which then stands between the strings
        kept[lengths[:count]] = False
        kept[zeros[:count, 1:]] = False
        return window[:size][kept].tobytes().split(b"\0")[1:]

    def _alignment(self) -> int:
        n = self.meta.get("general.alignment", 32)
        if type(n) is not int or not 1 <= n <= MAX_ALIGNMENT or n & (n - 1):
            self._fail(f"key 'general.alignment' is {shown(n)}; a power of two up to {MAX_ALIGNMENT} is needed")
        return n

    # --- tensors ---------------------------------------------------------------------------------------------------

    def _tensor_entry(self):
        """(name, type, shape, offset in the data section) as the file states them, type and shape checked."""
        name = self._string("a tensor name", 63)
        what = f"tensor {shown(name)}"
        if not name or "\0" in name:
            self._fail(f"{what}: names have 1 to 63 bytes and no NUL")
        n_dims = self._u32(what)
        if not 1 <= n_dims <= 4:
            self._fail(f"{what} has {n_dims} dimensions; 1 to 4 are read")
        dims = struct.unpack(f"<{n_dims}Q", self._take(8 * n_dims, what))
        if not all(1 <= n <= MAX_DIM for n in dims):
            self._fail(f"{what} has the shape {list(dims[::-1])}; each size is 1 to {MAX_DIM}")
        code, offset = self._u32(what), self._u64(what)
        if code not in table.BY_ID:
            self._fail(f"{what} has type {code}, which is unknown; known are {_ranges(table.BY_ID)}")
        return name, table.BY_ID[code], dims[::-1], offset

    def _placed(self, entry, data: int, alignment: int):
        name, info, shape, offset = entry
        try:
            n_bytes = table.tensor_bytes(info.name, shape)
        except ValueError as error:
            self._fail(f"tensor {shown(name)} of shape {list(shape)}: {error}")
        if offset % alignment:
            self._fail(f"tensor {shown(name)} starts at {offset}, which is not a multiple of {alignment}")
        if data + offset + n_bytes > self._size:
            self._fail(
                f"truncated or damaged: tensor {shown(name)} ends at byte {data + offset + n_bytes}, "
                f"the file has {self._size}"
            )
        return name, info, shape, data + offset, n_bytes

    def _check_apart(self):
        names, end, last = set(), 0, ""
        for name, *_ in self.tensors:
            if name in names:
                self._fail(f"tensor {shown(name)} occurs twice")
            names.add(name)
        for name, _, _, offset, n_bytes in sorted(self.tensors, key=lambda entry: entry[3]):
            if offset < end:
                self._fail(f"tensors {shown(last)} and {shown(name)} overlap")
            end, last = offset + n_bytes, name


def _ranges(numbers) -> str:
    """ "0-3, 6-30": the numbers as text."""
    spans = []
    for n in sorted(numbers):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
