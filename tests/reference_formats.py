"""NumPy decoders of the quantization formats, written column by column from their descriptions: column j of a block
takes its bits from the place that a formula in j names."""

from __future__ import annotations

from dataclasses import dataclass

import gguf.quants
import numpy as np
from reference_bits import (
    HALF,
    IQ4,
    J32,
    QUARTER,
    Format,
    J,
    digit,
    fifth,
    four,
    nibble,
    nibbles,
    none,
    one,
    rows_of_nibbles,
    table_format,
    two,
)
from reference_formats_ik import IK_FORMATS

PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass
class Weights:
    """value = scale * code - floor, each float64 [rows][k]; code is signed, scale and floor are exact. `gain`: what
    products multiply by beyond that."""

    type: str
    scale: np.ndarray
    code: np.ndarray
    floor: np.ndarray
    gain: float = 1.0

    @property
    def exact(self):
        return self.gain * (self.scale * self.code - self.floor)

    @property
    def float32(self):
        """As a float32 decoder gets it: two roundings."""
        with np.errstate(over="ignore"):  # MXFP4 reaches 12 * 2^127
            return self.scale.astype(np.float32) * self.code.astype(np.float32) - self.floor.astype(np.float32)


def blocks_of(type_name: str, raw: np.ndarray) -> np.ndarray:
    """Rows of bytes as [rows][blocks] records (a view)."""
    return raw[:, FORMATS[type_name].meta :].view(FORMATS[type_name].record)


def row_scales(type_name: str, raw: np.ndarray) -> np.ndarray:
    """The scales before the rows' first blocks, [rows][1] (a view)."""
    kind = np.dtype(FORMATS[type_name].row)
    return raw[:, : kind.itemsize].view(kind)


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
    if f.row:
        d = row_scales(type_name, raw).astype(np.float64)
        scale, floor = scale * d, floor * d + 0.0  # no negative zeros
    return Weights(type_name, scale, code.reshape(rows, -1).astype(np.float64), floor, float(np.float32(f.gain)))


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
    if FORMATS[type_name].row:
        row_scales(type_name, raw)[:] = values[:, :1]
    elif type_name == "IQ1_M":  # four bits in each of four words
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


# ---------------------------------------------------------------- k-quants
def _k4(b, code):
    sc, s = b.sc, np.arange(4)
    first, second, third = sc[..., s], sc[..., s + 4], sc[..., s + 8]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], -1)
    mins = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], -1)
    return code, b.d * scales, b.dmin * mins


def _q5_k(b):
    return _k4(b, four(b.qs) | (b.qh[..., J % 32] >> J // 32 & 1) << 4)


def _q6_k(b):
    low = b.ql[..., 64 * HALF + 32 * (QUARTER % 2) + J % 32] >> 4 * (QUARTER // 2) & 15
    high = b.qh[..., 32 * HALF + J % 32] >> 2 * QUARTER & 3
    return (low | high << 4) - 32, b.d * b.sc, none(b)


def _q2_k(b):
    return two(b.qs), b.d * (b.sc & 15), b.dmin * (b.sc >> 4)


def _q3_k(b):
    s = np.arange(16)
    low = b.sc[..., s % 8] >> 4 * (s // 8) & 15
    high = b.sc[..., 8 + s % 4] >> 2 * (s // 4) & 3
    code = two(b.qs) + 4 * (b.hmask[..., J % 32] >> J // 32 & 1) - 4
    return code, b.d * ((low | high << 4) - 32), none(b)


# ---------------------------------------------------------------- levels
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
    scale = (nibble(b.scales_l, ib) | (b.scales_h >> 2 * ib & 3) << 4) - 32
    return IQ4[rows_of_nibbles(b.qs)], b.d * scale, none(b)


def _mxfp4(b):
    return FP4[nibbles(b.qs)], 2.0 ** (b.e - 128), none(b)


def _nvfp4(b):
    j = np.arange(64)
    return FP4[b.qs[..., 8 * (j // 16) + j % 8] >> 4 * (j % 16 // 8) & 15], UE4M3[b.sc], none(b)


# ---------------------------------------------------------------- one and two bits
def _tq1_0(b):
    j, r, s = np.arange(160), np.arange(80), np.arange(16)
    parts = (
        digit(b.qs[..., j % 32], 3 ** (j // 32)),
        digit(b.qs[..., 32 + r % 16], 3 ** (r // 16)),
        digit(b.qh[..., s % 4], 3 ** (s // 4)),
    )
    return np.concatenate(parts, -1) - 1, b.d, none(b)


def _q1_0(b):
    j = np.arange(128)
    return 2 * (b.qs[..., j // 8] >> j % 8 & 1) - 1, b.d, none(b)


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
    return GRIDS[name][index].reshape(*index.shape[:-1], -1)


L8, L4, IB, S16 = np.arange(32), np.arange(64), np.arange(8), np.arange(16)  # groups of 8, 4, 32, 16 columns


def _word32(bytes4):
    return (bytes4 << np.array([0, 8, 16, 24])).sum(-1)


def _iq2_xxs(b):
    qs = b.qs.reshape(*b.qs.shape[:-1], 8, 8)
    index, a = qs[..., :4].reshape(*b.qs.shape[:-1], 32), _word32(qs[..., 4:])
    signs = _even(a[..., L8 // 4] >> 7 * (L8 % 4) & 127)
    return _values("IQ2_XXS", index) * _minus(signs), b.d * (2 * (a >> 28) + 1) / 8, none(b)


def _iq2_xs(b):
    code = _values("IQ2_XS", b.qs & 511) * _minus(_even(b.qs >> 9))
    return code, b.d * (2 * nibble(b.sc, S16) + 1) / 8, none(b)


def _iq2_s(b):
    index = b.qs | (b.qh[..., L8 // 4] >> 2 * (L8 % 4) & 3) << 8
    return _values("IQ2_S", index) * _minus(b.signs), b.d * (2 * nibble(b.sc, S16) + 1) / 8, none(b)


def _iq3_xxs(b):
    a = _word32(b.sas.reshape(*b.sas.shape[:-1], 8, 4))
    signs = _even(a[..., L8 // 4] >> 7 * (L8 % 4) & 127)
    return _values("IQ3_XXS", b.qs) * _minus(signs), b.d * (2 * (a >> 28) + 1) / 4, none(b)


def _iq3_s(b):
    index = b.qs | (b.qh[..., L4 // 8] >> L4 % 8 & 1) << 8
    return _values("IQ3_S", index) * _minus(b.signs), b.d * (2 * nibble(b.sc, IB) + 1), none(b)


def _iq1_s(b):
    """The eighth that is added to every value of the grid is a minimum: one per 32 columns."""
    index = b.qs | (b.qh[..., L8 // 4] >> 3 * (L8 % 4) & 7) << 8
    scale = b.d * (2 * (b.qh >> 12 & 7) + 1)
    return _values("IQ1_S", index), scale, -scale * np.where(b.qh >> 15, -0.125, 0.125)


def _iq1_m(b):
    """Codes are eighths: the eighth that is added changes its sign within a scale."""
    t = nibble(b.qh, L8)
    eighths = 8 * _values("IQ1_S", b.qs | (t & 7) << 8) + np.where(t & 8, -1, 1)[..., J // 8]
    sc = b.sc
    bits = sc[..., 0] >> 12 | sc[..., 1] >> 8 & 0xF0 | sc[..., 2] >> 4 & 0xF00 | sc[..., 3] & 0xF000
    d = bits.astype(np.uint16).view(np.float16).astype(np.float64)[..., None]
    return eighths, d * (2 * (sc[..., S16 // 4] >> 3 * (S16 % 4) & 7) + 1) / 8, none(b)


def _iq1_s_r1(b):
    l4 = np.arange(4)
    values = 8 * _values("IQ1_S", b.qs | (b.qh >> 3 * l4 & 7) << 8) + np.where(b.qh >> 15, -1, 1)
    return values, (2 * (b.qh >> 12 & 7) + 1) / 8, none(b)


def _iq1_m_r1(b):
    t = nibble(b.qh, np.arange(4))
    values = 8 * _values("IQ1_S", b.qs | (t & 7) << 8) + np.repeat(np.where(t & 8, -1, 1), 8, axis=-1)
    return values, (b.sc >> 4 * np.arange(2) & 15) / 8, none(b)


# ---------------------------------------------------------------- all of them
def _legacy(zero, code, *members, mins=None):
    def decoded(b):
        return code(b) - zero, b.d, -b.m if mins else none(b)

    return Format(32, zero, decoded, np.dtype([("d", "<f2"), *members]), mins=mins)


def _q6_0(b):
    return nibbles(b.qs) | (b.qh[..., J32 % 8] >> 4 * (J32 % 16 // 8) + 2 * (J32 // 16) & 3) << 4


M, QH, QS = ("m", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)
FORMATS = {
    "Q4_0": _legacy(8, lambda b: nibbles(b.qs), QS),
    "Q4_1": _legacy(0, lambda b: nibbles(b.qs), M, QS, mins="float"),
    "Q5_0": _legacy(16, lambda b: nibbles(b.qs) | fifth(b), QH, QS),
    "Q5_1": _legacy(0, lambda b: nibbles(b.qs) | fifth(b), M, QH, QS, mins="float"),
    "Q8_0": Format(32, 128, lambda b: (b.qs, b.d, none(b)), np.dtype([("d", "<f2"), ("qs", "i1", 32)])),
    "IQ4_NL": table_format(127 + 1, lambda b: (IQ4[nibbles(b.qs)], b.d, none(b)), "d:f2 qs:u1*16", columns=32),
    "MXFP4": table_format(12, _mxfp4, "e:u1 qs:u1*16", columns=32),
    "NVFP4": table_format(12, _nvfp4, "sc:u1*4 qs:u1*32", sub=16, columns=64),
    "Q1_0_G128": table_format(1, _q1_0, "d:f2 qs:u1*16", columns=128),
    "Q2_K": table_format(0, _q2_k, "sc:u1*16 qs:u1*64 d:f2 dmin:f2", sub=16, mins="int"),
    "Q3_K": table_format(4, _q3_k, "hmask:u1*32 qs:u1*64 sc:u1*12 d:f2", sub=16),
    "Q4_K": table_format(0, lambda b: _k4(b, four(b.qs)), "d:f2 dmin:f2 sc:u1*12 qs:u1*128", mins="int"),
    "Q5_K": table_format(0, _q5_k, "d:f2 dmin:f2 sc:u1*12 qh:u1*32 qs:u1*128", mins="int"),
    "Q6_K": table_format(32, _q6_k, "ql:u1*128 qh:u1*64 sc:i1*16 d:f2", sub=16),
    "TQ1_0": table_format(1, _tq1_0, "qs:u1*48 qh:u1*4 d:f2"),
    "TQ2_0": table_format(1, lambda b: (two(b.qs) - 1, b.d, none(b)), "qs:u1*64 d:f2"),
    "IQ4_XS": table_format(127 + 1, _iq4_xs, "d:f2 scales_h:u2 scales_l:u1*4 qs:u1*128"),
    "IQ2_XXS": table_format(43, _iq2_xxs, "d:f2 qs:u1*64"),
    "IQ2_XS": table_format(43, _iq2_xs, "d:f2 qs:u2*32 sc:u1*8", sub=16),
    "IQ2_S": table_format(43, _iq2_s, "d:f2 qs:u1*32 signs:u1*32 qh:u1*8 sc:u1*8", sub=16),
    "IQ3_XXS": table_format(62, _iq3_xxs, "d:f2 qs:u1*64 sas:u1*32"),
    "IQ3_S": table_format(15, _iq3_s, "d:f2 qs:u1*64 qh:u1*8 signs:u1*32 sc:u1*4"),
    "IQ1_S": table_format(1, _iq1_s, "d:f2 qs:u1*32 qh:u2*8", mins="int"),
    "IQ1_M": table_format(9, _iq1_m, "qs:u1*32 qh:u1*16 sc:u2*4", sub=16),
    "Q6_0": _legacy(32, _q6_0, ("qh", "u1", 8), QS),
    "Q8_KV_R1": table_format(128, lambda b: (b.qs, one(b), none(b)), "qs:i1*32", columns=32, row="<f4"),
    "Q8_K_R1": table_format(128, lambda b: (b.qs, b.d, none(b)), "d:f2 qs:i1*256"),
    "IQ1_S_R1": table_format(9, _iq1_s_r1, "qs:u1*4 qh:u2", columns=32, row="<f2"),
    "IQ1_M_R1": table_format(9, _iq1_m_r1, "qs:u1*4 qh:u1*2 sc:u1", sub=16, columns=32, row="<f2"),
} | IK_FORMATS
BLOCKS = {name: f.record for name, f in FORMATS.items()}
COLUMNS = {name: f.columns for name, f in FORMATS.items()}
SUB = {name: f.sub for name, f in FORMATS.items()}
ZERO = {name: f.zero for name, f in FORMATS.items()}
INT_MINS, FLOAT_MINS = ([name for name, f in FORMATS.items() if f.mins == kind] for kind in ("int", "float"))
