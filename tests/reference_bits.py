"""Where formats keep their bits: what the NumPy decoders share. A `b` has the members of all blocks, see Members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Format:
    """columns: per block; zero: the code of value 0; sub: columns that share a scale; mins: None, "float" or "int";
    decode: records [rows][blocks] -> (signed code [...][columns], scale, floor [...][sub-blocks or 1]);
    record: members of a block in file order; row: type of the scale before a row's first block, after which `skip`
    bytes are not read; gain: its factor in products."""

    columns: int
    zero: int
    decode: Callable
    record: np.dtype
    sub: int = 32
    mins: str | None = None
    row: str | None = None
    skip: int = 0
    gain: float = 1.0

    @property
    def meta(self) -> int:
        """Bytes before a row's first block."""
        return self.skip + (np.dtype(self.row).itemsize if self.row else 0)


J32, J = np.arange(32), np.arange(256)
HALF, QUARTER = J // 128, J % 128 // 32  # of a block of 256 columns


def none(b):
    return np.zeros((*b._records.shape, 1))


def one(b):
    return np.ones((*b._records.shape, 1))


def nibbles(qs):
    """Blocks of 32: low nibbles of 16 bytes, then their high nibbles."""
    return qs[..., J32 % 16] >> 4 * (J32 // 16) & 15


def two(qs):
    """Two bits per column: 32 bytes hold 4 x 32 columns."""
    return qs[..., 32 * HALF + J % 32] >> 2 * QUARTER & 3


def four(qs):
    """Groups of 32 bytes hold 64 columns: low nibbles, then high nibbles."""
    return qs[..., 32 * (J // 64) + J % 32] >> 4 * (J // 32 % 2) & 15


def nibble(a, i):
    return a[..., i // 2] >> 4 * (i % 2) & 15


def fifth(b):
    return (b.qh >> J32 & 1) << 4


def rows_of_nibbles(qs):
    """Sub-blocks of 32 in 16 bytes each: low nibbles, then high nibbles."""
    return qs[..., 16 * (J // 32) + J % 16] >> 4 * (J % 32 // 16) & 15


IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


def digit(byte, power):
    """Base-3 digits, as fractions of 256: 0, 1 or 2."""
    return 3 * (byte * power % 256) >> 8


def table_format(zero, decoded, members: str, sub=32, mins=None, columns=256, **more):
    """members: "name:type" or "name:type*count", separated by blanks."""
    fields = [member.replace("*", ":").split(":") for member in members.split()]
    record = np.dtype([(name, "<" + kind, *map(int, count)) for name, kind, *count in fields])
    return Format(columns, zero, decoded, record, sub, mins, **more)
