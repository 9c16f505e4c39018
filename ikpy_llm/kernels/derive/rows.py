"""Reading a type in the layout of the file, row by row: the functions every other derivation starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..quants import Quant
from ..simd.ops import byte_vector, f32_from_bits, inline, load_f16, load_f32, lookup
from .blocks import block_at, compiled


@dataclass(frozen=True)
class RowFunctions:
    """Inlined kernel functions of one type; a block is named by its address, j is the sub-block.

    raw(address, j) -> u8 vector of `sub` stored codes; levels(address, j) -> u8 vector of level (+ shift) + zero;
    scale(address, j), floor(address, j) -> float32, without the row's scale;
    scale_int, floor_int -> int64 as stored, where they are no half floats; d(address), dmin(address) -> float32,
    without the type's unit; shifted(address, j) -> 0 or 1; row(row address) -> float32, the scale before its first
    block (1 for types without).
    """

    raw: Any
    levels: Any
    scale: Any
    floor: Any
    scale_int: Any
    floor_int: Any
    d: Any
    dmin: Any
    shifted: Any
    row: Any


def value_function(q: Quant):
    """u8 codes -> u8 level + zero."""
    if q.levels is None:

        @inline
        def value(codes):
            return codes

        return value
    levels = byte_vector(q.levels)

    @inline
    def value(codes):
        return lookup(levels(), codes)

    return value


def row_functions(q: Quant) -> RowFunctions:
    at = block_at(q)
    fns = {k: compiled(f) for k, f in q.functions.items()}
    codes, scale_of, floor_of = fns["codes"], fns.get("scale"), fns.get("floor")

    @inline
    def raw(address, j):
        return codes(at(address), j)

    value, shift, shifted_of = value_function(q), q.shift, fns.get("shifted")

    @inline
    def shifted(address, j):
        return shifted_of(at(address), j)

    if shift:

        @inline
        def levels(address, j):
            return value(raw(address, j)) + shift * shifted(address, j)
    else:

        @inline
        def levels(address, j):
            return value(raw(address, j))

    d, dmin = block_factor(q, at, fns, "d"), block_factor(q, at, fns, "dmin") if q.int_mins else None
    scale_int, to_float, unit = None, scale_float(q.scales), np.float32(q.unit)

    if q.scales == "one":

        @inline
        def scale_stored(address, j):
            return 1
    else:

        @inline
        def scale_stored(address, j):
            return scale_of(at(address), j)

    if q.scales == "f16":
        scale = scale_stored
    elif q.int_scales:
        scale_int = scale_stored

        @inline
        def scale(address, j):
            return d(address) * unit * to_float(scale_stored(address, j))
    else:
        scale_int = scale_stored

        @inline
        def scale(address, j):
            return to_float(scale_stored(address, j))

    @inline
    def floor_stored(address, j):
        return floor_of(at(address), j)

    @inline
    def scaled_floor(address, j):
        return dmin(address) * unit * np.float32(floor_stored(address, j))

    @inline
    def none(address, j):
        return np.float32(0)

    floor = none if q.mins is None else floor_stored if q.mins == "f16" else scaled_floor
    floor_int = floor_stored if q.int_mins else None
    return RowFunctions(raw, levels, scale, floor, scale_int, floor_int, d, dmin, shifted, row_factor(q))


def row_factor(q: Quant):
    """Function (row address) -> float32: the row's scale, 1 for types without."""
    if q.row is None:

        @inline
        def factor(address):
            return np.float32(1)
    elif q.row == "f16":

        @inline
        def factor(address):
            return load_f16(address)
    else:

        @inline
        def factor(address):
            return load_f32(address)

    return factor


def block_factor(q: Quant, at, functions: dict, name: str):
    """Function (block address) -> float32: the block's d or dmin, a field or a function of the declaration; 1 where the
    row has the scale."""
    of = functions.get(name)
    if q.row is not None:

        @inline
        def factor(address):
            return np.float32(1)
    elif of is not None:

        @inline
        def factor(address):
            return of(at(address))
    elif name == "d":

        @inline
        def factor(address):
            return at(address).d
    else:

        @inline
        def factor(address):
            return at(address).dmin

    return factor


def scale_float(kind: str):
    """Function (stored integer) -> float32, for scales that are stored as integers; kinds are those of quants.base."""
    if kind == "e8m0":

        @inline
        def number(e):
            return f32_from_bits((e - 1) << 23 if e > 1 else 0x200000 << e)
    elif kind == "ue4m3":

        @inline
        def number(x):
            e, m = (x >> 3) & 15, x & 7
            if x == 127:
                return np.float32(0)
            return f32_from_bits(((e + 119) << 23) | (m << 20)) if e > 0 else np.float32(m) * np.float32(2**-10)
    else:
        integer = scale_integer(kind)

        @inline
        def number(s):
            return np.float32(integer(s))

    return number


def scale_integer(kind: str):
    """Function (stored integer, or a vector of them) -> what it stands for, kinds of quants.base.INT_SCALES."""
    if kind == "odd4":

        @inline
        def number(s):
            return s + s + 1
    elif kind == "odd7":

        @inline
        def number(s):
            return s + s - 127
    elif kind == "mid4":

        @inline
        def number(s):
            return s - 8
    else:

        @inline
        def number(s):
            return s

    return number
