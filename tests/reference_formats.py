"""NumPy decoders of the quantization formats, written column by column from their descriptions: column j of a block
takes its bits from the place that a formula in j names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf.quants
import numpy as np

PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Format:
    """columns: per block; zero: the code of value 0; sub: columns that share a scale; mins: None, "float" or "int";
    decode: records [rows][blocks] -> (signed code [...][columns], scale, floor [...][sub-blocks or 1]);
    record: members of a block in file order."""

    columns: int
    zero: int
    decode: Callable
    record: np.dtype
    sub: int = 32
    mins: str | None = None


@dataclass
class Weights:
    """value = scale * code - floor, each float64 [rows][k]; code is signed, scale and floor are exact."""

    type: str
    scale: np.ndarray
    code: np.ndarray
    floor: np.ndarray

    @property
    def exact(self):
        return self.scale * self.code - self.floor

    @property
    def float32(self):
        """As a float32 decoder gets it: two roundings."""
        with np.errstate(over="ignore"):  # MXFP4 reaches 12 * 2^127
            return self.scale.astype(np.float32) * self.code.astype(np.float32) - self.floor.astype(np.float32)


def blocks_of(type_name: str, raw: np.ndarray) -> np.ndarray:
    """Rows of bytes as [rows][blocks] records (a view)."""
    return raw.view(FORMATS[type_name].record)


def decode(type_name: str, raw: np.ndarray) -> Weights:
    """raw: uint8 [rows][row_bytes] in the layout of the file."""
    if type_name in PLAIN:
        values = raw.view(PLAIN[type_name])
        if type_name == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return Weights(type_name, np.ones(values.shape), values.astype(np.float64), np.zeros(values.shape))
    f, rows = FORMATS[type_name], len(raw)
    code, *factors = f.decode(Members(blocks_of(type_name, raw)))
    scale, floor = (np.repeat(a, f.columns // a.shape[-1], axis=-1).reshape(rows, -1) for a in factors)
    return Weights(type_name, scale, code.reshape(rows, -1).astype(np.float64), floor)


class Members:
    """b.name: member of all blocks as float64 or int64, [rows][blocks][1 or count]."""

    def __init__(self, records: np.ndarray):
        self._records = records

    def __getattr__(self, name):
        a = self._records[name]
        a = a.astype(np.float64 if a.dtype.kind == "f" else np.int64)
        return a if a.ndim == 3 else a[..., None]


# ---------------------------------------------------------------- scales of tests
def put_scales(type_name: str, raw: np.ndarray, values) -> None:
    """Make the block scales (d; not the minimums) `values`, which broadcast to [rows][blocks], or the nearest the type
    has; MXFP4 and NVFP4 have no signs."""
    b = blocks_of(type_name, raw)
    values = np.broadcast_to(np.asarray(values, np.float64), b.shape)
    if type_name == "IQ1_M":  # four bits in each of four words
        bits = values.astype(np.float16).view(np.uint16)[..., None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        b["sc"] = b["sc"] & 0xFFF | bits << 12
    elif type_name == "MXFP4":
        b["e"] = np.clip(np.rint(np.log2(np.abs(values))) + 128, 0, 254)
    elif type_name == "NVFP4":
        known = UE4M3[:127]
        b["sc"] = np.abs(np.log2(np.abs(values)[..., None] / np.maximum(known, 1e-9))).argmin(-1)[..., None]
    else:
        b["d"] = values


def minimums(type_name: str) -> set[str]:
    """Names of the members that multiply minimums."""
    return {"m", "dmin"} & set(FORMATS[type_name].record.names)


# ---------------------------------------------------------------- places of bits
J32, J = np.arange(32), np.arange(256)
HALF, QUARTER = J // 128, J % 128 // 32  # of a block of 256 columns


def _none(b):
    return np.zeros((*b._records.shape, 1))


def _nibbles(qs):
    """Blocks of 32: low nibbles of 16 bytes, then their high nibbles."""
    return qs[..., J32 % 16] >> 4 * (J32 // 16) & 15


def _two(qs):
    """Two bits per column: 32 bytes hold 4 x 32 columns."""
    return qs[..., 32 * HALF + J % 32] >> 2 * QUARTER & 3


def _four(qs):
    """Groups of 32 bytes hold 64 columns: low nibbles, then high nibbles."""
    return qs[..., 32 * (J // 64) + J % 32] >> 4 * (J // 32 % 2) & 15


def _nibble(a, i):
    return a[..., i // 2] >> 4 * (i % 2) & 15


def _fifth(b):
    return (b.qh >> J32 & 1) << 4


# ---------------------------------------------------------------- k-quants
def _k4(b, code):
    sc, s = b.sc, np.arange(4)
    first, second, third = sc[..., s], sc[..., s + 4], sc[..., s + 8]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], -1)
    mins = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], -1)
    return code, b.d * scales, b.dmin * mins


def _q5_k(b):
    return _k4(b, _four(b.qs) | (b.qh[..., J % 32] >> J // 32 & 1) << 4)


def _q6_k(b):
    low = b.ql[..., 64 * HALF + 32 * (QUARTER % 2) + J % 32] >> 4 * (QUARTER // 2) & 15
    high = b.qh[..., 32 * HALF + J % 32] >> 2 * QUARTER & 3
    return (low | high << 4) - 32, b.d * b.sc, _none(b)


def _q2_k(b):
    return _two(b.qs), b.d * (b.sc & 15), b.dmin * (b.sc >> 4)


def _q3_k(b):
    s = np.arange(16)
    low = b.sc[..., s % 8] >> 4 * (s // 8) & 15
    high = b.sc[..., 8 + s % 4] >> 2 * (s // 4) & 3
    code = _two(b.qs) + 4 * (b.hmask[..., J % 32] >> J // 32 & 1) - 4
    return code, b.d * ((low | high << 4) - 32), _none(b)


# ---------------------------------------------------------------- levels
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])


def _ue4m3(x: int) -> float:
    """Half of an 8-bit float with 4 bits of exponent and 3 of mantissa; the sign bit means nothing."""
    e, m = x >> 3 & 15, x & 7
    if x in (0, 127):
        return 0.0
    return 0.5 * m * 2.0**-9 if e == 0 else 0.5 * (1 + m / 8) * 2.0 ** (e - 7)


UE4M3 = np.array([_ue4m3(x) for x in range(256)])


def _iq4_xs(b):
    ib = np.arange(8)
    scale = (_nibble(b.scales_l, ib) | (b.scales_h >> 2 * ib & 3) << 4) - 32
    code = b.qs[..., 16 * (J // 32) + J % 16] >> 4 * (J % 32 // 16) & 15
    return IQ4[code], b.d * scale, _none(b)


def _mxfp4(b):
    return FP4[_nibbles(b.qs)], 2.0 ** (b.e - 128), _none(b)


def _nvfp4(b):
    j = np.arange(64)
    return FP4[b.qs[..., 8 * (j // 16) + j % 8] >> 4 * (j % 16 // 8) & 15], UE4M3[b.sc], _none(b)


# ---------------------------------------------------------------- one and two bits
def _digit(byte, power):
    """Base-3 digits, as fractions of 256: 0, 1 or 2."""
    return 3 * (byte * power % 256) >> 8


def _tq1_0(b):
    j, r, s = np.arange(160), np.arange(80), np.arange(16)
    parts = (
        _digit(b.qs[..., j % 32], 3 ** (j // 32)),
        _digit(b.qs[..., 32 + r % 16], 3 ** (r // 16)),
        _digit(b.qh[..., s % 4], 3 ** (s // 4)),
    )
    return np.concatenate(parts, -1) - 1, b.d, _none(b)


def _q1_0(b):
    j = np.arange(128)
    return 2 * (b.qs[..., j // 8] >> j % 8 & 1) - 1, b.d, _none(b)


# ---------------------------------------------------------------- grids
def _grid(name: str) -> np.ndarray:
    cls = getattr(gguf.quants, name)
    cls.init_grid()
    return cls.grid.reshape(cls.grid_shape).astype(np.int64)


GRIDS = {name: _grid(name) for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")}


def _minus(sign_bytes):
    """Bytes [..][32] -> -1 where bit j % 8 of byte j / 8 is set, else 1."""
    return 1 - 2 * (sign_bytes[..., J // 8] >> J % 8 & 1)


def _even(code):
    """7-bit sign codes: bit 7 makes the number of minus signs even."""
    return code | np.bitwise_count(code).astype(np.int64) % 2 << 7


def _values(name: str, index):
    """Rows of a grid, one after the other."""
    return GRIDS[name][index].reshape(*index.shape[:-1], 256)


L8, L4, IB, S16 = np.arange(32), np.arange(64), np.arange(8), np.arange(16)  # groups of 8, 4, 32, 16 columns


def _word32(bytes4):
    return (bytes4 << np.array([0, 8, 16, 24])).sum(-1)


def _iq2_xxs(b):
    qs = b.qs.reshape(*b.qs.shape[:-1], 8, 8)
    index, a = qs[..., :4].reshape(*b.qs.shape[:-1], 32), _word32(qs[..., 4:])
    signs = _even(a[..., L8 // 4] >> 7 * (L8 % 4) & 127)
    return _values("IQ2_XXS", index) * _minus(signs), b.d * (2 * (a >> 28) + 1) / 8, _none(b)


def _iq2_xs(b):
    code = _values("IQ2_XS", b.qs & 511) * _minus(_even(b.qs >> 9))
    return code, b.d * (2 * _nibble(b.sc, S16) + 1) / 8, _none(b)


def _iq2_s(b):
    index = b.qs | (b.qh[..., L8 // 4] >> 2 * (L8 % 4) & 3) << 8
    return _values("IQ2_S", index) * _minus(b.signs), b.d * (2 * _nibble(b.sc, S16) + 1) / 8, _none(b)


def _iq3_xxs(b):
    a = _word32(b.sas.reshape(*b.sas.shape[:-1], 8, 4))
    signs = _even(a[..., L8 // 4] >> 7 * (L8 % 4) & 127)
    return _values("IQ3_XXS", b.qs) * _minus(signs), b.d * (2 * (a >> 28) + 1) / 4, _none(b)


def _iq3_s(b):
    index = b.qs | (b.qh[..., L4 // 8] >> L4 % 8 & 1) << 8
    return _values("IQ3_S", index) * _minus(b.signs), b.d * (2 * _nibble(b.sc, IB) + 1), _none(b)


def _iq1_s(b):
    """The eighth that is added to every value of the grid is a minimum: one per 32 columns."""
    index = b.qs | (b.qh[..., L8 // 4] >> 3 * (L8 % 4) & 7) << 8
    scale = b.d * (2 * (b.qh >> 12 & 7) + 1)
    return _values("IQ1_S", index), scale, -scale * np.where(b.qh >> 15, -0.125, 0.125)


def _iq1_m(b):
    """Codes are eighths: the eighth that is added changes its sign within a scale."""
    t = _nibble(b.qh, L8)
    eighths = 8 * _values("IQ1_S", b.qs | (t & 7) << 8) + np.where(t & 8, -1, 1)[..., J // 8]
    sc = b.sc
    bits = sc[..., 0] >> 12 | sc[..., 1] >> 8 & 0xF0 | sc[..., 2] >> 4 & 0xF00 | sc[..., 3] & 0xF000
    d = bits.astype(np.uint16).view(np.float16).astype(np.float64)[..., None]
    return eighths, d * (2 * (sc[..., S16 // 4] >> 3 * (S16 % 4) & 7) + 1) / 8, _none(b)


# ---------------------------------------------------------------- all of them
def _legacy(zero, code, *members, mins=None):
    def decoded(b):
        return code(b) - zero, b.d, -b.m if mins else _none(b)

    return Format(32, zero, decoded, np.dtype([("d", "<f2"), *members]), mins=mins)


def _super(zero, decoded, members: str, sub=32, mins=None, columns=256):
    """members: "name:type" or "name:type*count", separated by blanks."""
    fields = [member.replace("*", ":").split(":") for member in members.split()]
    record = np.dtype([(name, "<" + kind, *map(int, count)) for name, kind, *count in fields])
    return Format(columns, zero, decoded, record, sub, mins)


M, QH, QS = ("m", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)
FORMATS = {
    "Q4_0": _legacy(8, lambda b: _nibbles(b.qs), QS),
    "Q4_1": _legacy(0, lambda b: _nibbles(b.qs), M, QS, mins="float"),
    "Q5_0": _legacy(16, lambda b: _nibbles(b.qs) | _fifth(b), QH, QS),
    "Q5_1": _legacy(0, lambda b: _nibbles(b.qs) | _fifth(b), M, QH, QS, mins="float"),
    "Q8_0": Format(32, 128, lambda b: (b.qs, b.d, _none(b)), np.dtype([("d", "<f2"), ("qs", "i1", 32)])),
    "IQ4_NL": _super(127 + 1, lambda b: (IQ4[_nibbles(b.qs)], b.d, _none(b)), "d:f2 qs:u1*16", columns=32),
    "MXFP4": _super(12, _mxfp4, "e:u1 qs:u1*16", columns=32),
    "NVFP4": _super(12, _nvfp4, "sc:u1*4 qs:u1*32", sub=16, columns=64),
    "Q1_0_G128": _super(1, _q1_0, "d:f2 qs:u1*16", columns=128),
    "Q2_K": _super(0, _q2_k, "sc:u1*16 qs:u1*64 d:f2 dmin:f2", sub=16, mins="int"),
    "Q3_K": _super(4, _q3_k, "hmask:u1*32 qs:u1*64 sc:u1*12 d:f2", sub=16),
    "Q4_K": _super(0, lambda b: _k4(b, _four(b.qs)), "d:f2 dmin:f2 sc:u1*12 qs:u1*128", mins="int"),
    "Q5_K": _super(0, _q5_k, "d:f2 dmin:f2 sc:u1*12 qh:u1*32 qs:u1*128", mins="int"),
    "Q6_K": _super(32, _q6_k, "ql:u1*128 qh:u1*64 sc:i1*16 d:f2", sub=16),
    "TQ1_0": _super(1, _tq1_0, "qs:u1*48 qh:u1*4 d:f2"),
    "TQ2_0": _super(1, lambda b: (_two(b.qs) - 1, b.d, _none(b)), "qs:u1*64 d:f2"),
    "IQ4_XS": _super(127 + 1, _iq4_xs, "d:f2 scales_h:u2 scales_l:u1*4 qs:u1*128"),
    "IQ2_XXS": _super(43, _iq2_xxs, "d:f2 qs:u1*64"),
    "IQ2_XS": _super(43, _iq2_xs, "d:f2 qs:u2*32 sc:u1*8", sub=16),
    "IQ2_S": _super(43, _iq2_s, "d:f2 qs:u1*32 signs:u1*32 qh:u1*8 sc:u1*8", sub=16),
    "IQ3_XXS": _super(62, _iq3_xxs, "d:f2 qs:u1*64 sas:u1*32"),
    "IQ3_S": _super(15, _iq3_s, "d:f2 qs:u1*64 qh:u1*8 signs:u1*32 sc:u1*4"),
    "IQ1_S": _super(1, _iq1_s, "d:f2 qs:u1*32 qh:u2*8", mins="int"),
    "IQ1_M": _super(9, _iq1_m, "qs:u1*32 qh:u1*16 sc:u2*4", sub=16),
}
BLOCKS = {name: f.record for name, f in FORMATS.items()}
COLUMNS = {name: f.columns for name, f in FORMATS.items()}
SUB = {name: f.sub for name, f in FORMATS.items()}
ZERO = {name: f.zero for name, f in FORMATS.items()}
INT_MINS, FLOAT_MINS = ([name for name, f in FORMATS.items() if f.mins == kind] for kind in ("int", "float"))
