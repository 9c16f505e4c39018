"""Types of the KV cache: what a position takes, and how panels of positions hold it. Imports no Numba.

A quantized head lies in panels of W = lanes positions: tiles [cell / W][column / 32] of W positions, 32 columns. A tile
is eight vectors of 4 W codes (as bit planes, low bits first), then f16[W] scales and, where the type has them, f16[W]
minimums. q8_KV has instead f32[W] scales after all tiles of a panel. So a panel takes the type's own bytes.

Heads whose elements are no whole number of vectors, or of tiles, are kept with columns of zeros after them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ikpy_llm.errors import IkpyError, shown

from ..quants.shared import IQ4_LEVELS

COLUMNS = 32  # of a tile
PLAIN_COLUMNS = 16  # of plain heads come so many at a time: a whole number of vectors on every target
PLANES = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,)}  # bits of a code -> bit planes of a tile
MAX_HEAD = 1024  # elements of a head whose cache is quantized, or rotated


@dataclass(frozen=True)
class KVType:
    """value = scale * (levels[code] - zero) + minimum; `bits` of a code. Plain numbers have no zero: their bits are
    those of an element.
    """

    name: str  # as on the command line
    bits: int
    zero: int | None = None
    levels: tuple[int, ...] | None = None
    mins: bool = False
    row_scale: bool = False  # one f32 for a head's row instead of an f16 for 32 columns

    @property
    def is_plain(self) -> bool:
        return self.zero is None

    @property
    def planes(self) -> tuple[int, ...]:
        return PLANES[self.bits]

    @property
    def top(self) -> int:
        """Largest level."""
        return max(self.levels or [2**self.bits - 1])

    @property
    def tile_row(self) -> int:
        """Bytes of one position in a tile."""
        return COLUMNS * self.bits // 8 + (0 if self.row_scale else 2 + 2 * self.mins)

    def unit(self, rotated: bool = False) -> int:
        """Columns that a head is filled up to a multiple of; rotated: it goes through a Hadamard rotation, which takes
        as many as a tile."""
        return PLAIN_COLUMNS if self.is_plain and not rotated else COLUMNS

    def columns(self, dim: int, rotated: bool = False) -> int:
        """Columns that a head of `dim` elements has in the cache."""
        unit = self.unit(rotated)
        return -(-dim // unit) * unit

    def row_bytes(self, dim: int, rotated: bool = False) -> int:
        """Bytes of one position of a head of `dim` elements."""
        columns = self.columns(dim, rotated)
        if self.is_plain:
            return columns * self.bits // 8
        return columns // COLUMNS * self.tile_row + 4 * self.row_scale


KV_TYPES = {
    t.name: t
    for t in (
        KVType("f32", 32),
        KVType("f16", 16),
        KVType("bf16", 16),
        KVType("q8_0", 8, 128),
        KVType("q8_KV", 8, 128, row_scale=True),
        KVType("q6_0", 6, 32),
        KVType("q5_1", 5, 0, mins=True),
        KVType("q5_0", 5, 16),
        KVType("q4_1", 4, 0, mins=True),
        KVType("q4_0", 4, 8),
        KVType("iq4_nl", 4, 128, IQ4_LEVELS),
    )
}


def kv_type(name: str) -> KVType:
    """The type of this name, in any case; IkpyError lists what is accepted."""
    for known in KV_TYPES.values():
        if known.name.lower() == str(name).lower():
            return known
    raise IkpyError(f"KV cache type {shown(name)[1:-1]}: accepted are {', '.join(KV_TYPES)}")
