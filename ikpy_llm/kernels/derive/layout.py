"""Sizes and offsets of panels and of quantized activations: what the engine needs to allocate, and kernels to
address. Imports no Numba.

Panel: W rows (W = f32 lanes of the target) woven together so that one vector load holds 4 columns of W rows. It is a
sequence of super-blocks of 256 columns (the last may have fewer). A super-block of n blocks of 32 columns is:
    codes    n blocks of 4 * bits * W bytes: panel_bits vectors, in which the codes of 8 lie as panels.pieces_of says;
             vector v of the 8 holds 4 columns, word v of word_columns() (byte 4r+i: row r, column i of the word)
    scales   f16[n * 32/group][W], a byte [n * 32/sub][W], or 4 bits: sub-blocks 2j and 2j+1 in the nibbles of a byte
    mins     f16[n][W], or byte pairs [n * 32/sub / 2][W][2], or the high nibbles of 4-bit scales
    d, dmin  f16[W] each, where scales and mins are integers
    shifts   u16[W]: bit j is the shift bit of sub-block j, where it has no place beside the scale: for scales "i7" and
             "odd7" it is the lowest bit of their byte
Types with a scale per row have f32[W] before the first super-block, and no d and dmin.
Float types: [column][W] elements.

Activations ("acts"): columns x of the product, quantized to s8 in tiles of T columns. A record (slice of 256 columns of
K, tile) holds:
    codes    s8[64][T][4]      x = codes * d, with d per 32 columns, a float of 22 bits; 8 words of word_columns() each
    scales   f32[8][T]         d
    offsets  f32[8][T]         -MAGIC * d, exact. An integer accumulator that starts at the bits of MAGIC is, as a
                               float, F = MAGIC + sum: fma(F, d, -MAGIC * d) converts and scales at once
    sums     f32[8][T]         sum of the codes of 32 columns, times d
    sums32   i16[4][T][2]      the same in units of unit / MIN_UNIT, rounded, as pairs; sums16 i16[8][T][2]: 16 columns
    unit     f32[T]            the largest d of the slice
    starts   i32[256/sub][T]   for each flavour (zero, sub): bits of MAGIC - zero * sum of the codes; where products are
                               those of code - 128 (simd/dots.py), zero is 128 less. None for zero = 0.
             i16[256/n][T][2]  for each flavour (zero, PAIRS + n): -zero * sum of the codes of n/4 words, of their first
                               and of their last two columns, where products are added in 16 bits (`chunk`)
Float types read float acts instead: f32[256][T] per record.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..quants import Plain, Quant, get
from ..quants.table import row_bytes
from ..simd import target
from ..simd.target import sums_in_16_bits

SLICE = 256
NIBBLES = ("u4", "odd4", "mid4")  # scales of 4 bits
MIN_UNIT = 8  # fixed-point unit of sums32 and sums16: 32 * 127 * 8 fits int16
MAGIC, MAGIC_BITS = 1.5 * 2**23, 0x4B400000  # floats around it are integers 1 apart, up to 2^22 either way
LIMIT_BITS = (127 + 110) << 23  # activations from 2^110 on count as not finite: MAGIC * d would not be


def width() -> int:
    """Rows of a panel."""
    return target.current().lanes


def panel_bits(q: Quant) -> int:
    """Bits of a code in panels: 8 where those hold levels (and shifts) themselves, because finding one of 64 takes AVX2
    longer than reading a byte."""
    return 8 if q.levels is not None and len(q.levels) > 32 and target.current().name == "avx2" else q.bits


@dataclass(frozen=True)
class PanelLayout:
    """Byte offsets inside a super-block of `n` 32-column blocks; every offset is (per block, fixed) = a * n + b."""

    quant: Quant
    w: int

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes per 32-column block."""
        return 4 * panel_bits(self.quant) * self.w

    @property
    def subs(self) -> int:
        """Sub-blocks per 32-column block."""
        return 32 // self.quant.sub

    @property
    def packed_mins(self) -> bool:
        """A 4-bit scale and a 4-bit minimum share a byte."""
        return self.quant.scales == "u4" and self.quant.mins == "u4"

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales per 32-column block."""
        q = self.quant
        if q.scales in ("f16", "one"):
            return 2 * self.w * 32 // q.group if q.scales == "f16" else 0
        return self.subs * self.w // (2 if q.scales in NIBBLES and not self.packed_mins else 1)

    @property
    def min_bytes(self) -> int:
        mins = self.quant.mins
        return 0 if mins is None or self.packed_mins else self.subs * self.w * (2 if mins == "f16" else 1)

    @property
    def block_bytes(self) -> int:
        """Bytes per 32-column block, all parts."""
        return self.code_bytes + self.scale_bytes + self.min_bytes

    @property
    def fixed_bytes(self) -> int:
        """Bytes per super-block besides its blocks: d, dmin and shifts."""
        q = self.quant
        return 2 * self.w * (q.block_d + (q.block_d and q.int_mins) + q.shift_words)

    @property
    def header_bytes(self) -> int:
        """Bytes before the first super-block: the scales of the rows."""
        return 4 * self.w * (self.quant.row is not None)


def panel_bytes(type_name: str, k: int) -> int:
    """Bytes of one panel (W rows) with k columns."""
    q = get(type_name)
    if isinstance(q, Plain):
        return k * width() * q.n_bytes
    layout = PanelLayout(q, width())
    return layout.header_bytes + k // 32 * layout.block_bytes + -(-k // SLICE) * layout.fixed_bytes


def weight_bytes(type_name: str, rows: int, k: int) -> int:
    """Bytes of a matrix woven into panels (the last panel is padded with zero rows)."""
    return -(-rows // width()) * panel_bytes(type_name, k)


def check_matrix(type_name: str, rows: int, k: int) -> None:
    """Raise ValueError if kernels cannot run a matrix of this shape."""
    q = get(type_name)
    unit = 1 if q.is_float else max(q.block, 32)
    if rows < 1 or k < 1 or k % unit:
        raise ValueError(f"{type_name}: {rows} x {k}: columns must be a positive multiple of {unit}")


def file_bytes(type_name: str, k: int) -> int:
    """Bytes of one row in the file's layout."""
    return row_bytes(type_name, k)


@functools.cache
def word_columns() -> tuple[int, ...]:
    """Columns of a block of 32 in the order of their bytes, 4 in a word.

    Where products are added in pairs of 16 bits, a word has two columns of either half: sub-blocks of 16 columns then
    are the two numbers of a pair, and one multiply-add by the pair of their scales closes both.
    """
    if not target.current().pairs16:
        return tuple(range(32))
    return tuple(column for v in range(0, 16, 2) for column in (v, v + 1, v + 16, v + 17))


PAIRS = 64
Flavour = tuple[int, int]  # (zero, sub or PAIRS + chunk) of a weight type: which start values its kernels read


@functools.cache
def chunk(type_name: str) -> int:
    """Columns whose products add up in 16 bits from start pairs on; 0 for types whose sums start as 32 bits.

    AVX2 without a dot-product instruction turns pairs of 16-bit sums into 32 bits with a multiply-add by 1; multiplying
    by an integer scale costs no more, and a block of 32 columns becomes a float once, whatever its sub-blocks. Sums may
    leave 16 bits on the way: only that of value - zero has to fit. Types with scales that are floats gain where more
    columns fit so, or where a word has columns of two sub-blocks.
    """
    q = get(type_name)
    if not target.current().pairs16 or q.is_float:
        return 0
    if q.top > 127:
        return 4 if q.zero == 128 and q.int_scales else 0
    columns = 4 * sums_in_16_bits(max(q.zero, q.top - q.zero))
    return columns if q.int_scales or q.sub == 16 or columns > 4 * sums_in_16_bits(q.top) else 0


def scaled_as_integers(type_name: str) -> bool:
    """Whether integer scales are part of the integer sums (`chunk`)."""
    return chunk(type_name) > 0 and get(type_name).int_scales


def flavour(type_name: str) -> Flavour | None:
    """The start values a type needs, None for float types. zero = 0 needs no array: MAGIC itself."""
    q = get(type_name)
    if isinstance(q, Plain):
        return None
    zero, columns = q.zero - 128 if target.current().pairs16 and q.top > 127 else q.zero, chunk(type_name)
    return zero, PAIRS + columns if columns else q.sub


@dataclass(frozen=True)
class ActsLayout:
    """Offsets inside a record of T columns; `flavours` are the start arrays behind the fixed part, in order."""

    t: int
    flavours: tuple[Flavour, ...] = ()
    is_float: bool = False

    @property
    def scales(self) -> int:
        return 256 * self.t

    @property
    def offsets(self) -> int:
        return self.scales + 32 * self.t

    @property
    def sums(self) -> int:
        return self.offsets + 32 * self.t

    @property
    def sums32(self) -> int:
        return self.sums + 32 * self.t

    @property
    def sums16(self) -> int:
        return self.sums32 + 16 * self.t

    @property
    def unit(self) -> int:
        return self.sums16 + 32 * self.t

    @property
    def starts(self) -> int:
        return self.unit + 4 * self.t

    def start(self, flavour: Flavour) -> int:
        """Offset of the start values of a flavour, 0 if it needs none. Raises KeyError if the layout lacks it."""
        if flavour[0] == 0:
            return 0
        offset = self.starts
        for f in self.stored:
            if f == flavour:
                return offset
            offset += SLICE // (f[1] % PAIRS) * 4 * self.t
        raise KeyError(f"these activations have no start values for {flavour}")

    @property
    def stored(self) -> tuple[Flavour, ...]:
        return tuple(f for f in self.flavours if f[0] != 0)

    @property
    def n_words(self) -> int:
        """Words of 4 bytes per column of a record; those of its columns are interleaved."""
        if self.is_float:
            return SLICE
        return self.starts // (4 * self.t) + sum(SLICE // (columns % PAIRS) for _, columns in self.stored)

    @property
    def stride(self) -> int:
        """Bytes of a record, a multiple of 64."""
        return -(-4 * self.t * self.n_words // 64) * 64

    def n_bytes(self, n: int, k: int) -> int:
        """Bytes for n columns of k values."""
        return -(-k // SLICE) * -(-n // self.t) * self.stride


def gemm_tile() -> int:
    """Activation columns per tile of the prompt kernels."""
    return {"avx512": 4, "avx2": 4, "neon": 8, "generic": 4}[target.current().name]


def gemm_panels() -> int:
    """Panels a prompt kernel runs side by side."""
    return {"avx512": 3, "avx2": 2}.get(target.current().name, 1)


def float_panels() -> int:
    """The same of float types: as many sums as registers hold beside a column of each panel and an activation."""
    return 1 if target.current().name == "generic" else 3


def gemm_scratch_bytes(n: int) -> int:
    """Scratch bytes per thread of a prompt kernel with n activation columns."""
    return -(-n // gemm_tile()) * gemm_tile() * max(gemm_panels(), float_panels()) * 4 * width()
