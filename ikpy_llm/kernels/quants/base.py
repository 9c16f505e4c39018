"""How a quantization type is declared. Every file beside this one declares one type; the folder is the registry.
Imports no Numba.

    value(row, column) = row * (scale(b, j) * (levels[codes(b, j)] + shift * shifted(b, j) - zero) - floor(b, j))

for sub-block j of block b. codes are unsigned bytes, so that every type feeds the same u8 x s8 dot product. Most types
have neither a scale per row nor a table that shifts; without levels a code is its own level.
The functions of a declaration are plain Python over `simd`; derive/ compiles them into every kernel.
"""

from __future__ import annotations

import builtins
import dis
import functools
import importlib
import logging
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from ikpy_llm.errors import IkpyError

from . import table

log = logging.getLogger("ikpy.quants")
_PACKAGE = Path(__file__).parents[2]
_TYPES = Path(__file__).with_name("types")  # the folder is the registry
_SIZES = {"f16": 2, "f32": 4, "u16": 2, "u32": 4, "u8": 1, "i8": 1}


class DeclarationError(IkpyError):
    """A file of this folder does not declare its type as it should; the message begins with file and line."""


def _place(file: str, line: int) -> str:
    """`ikpy_llm/kernels/quants/types/q4_k.py:8`."""
    path = Path(file)
    return f"{path.relative_to(_PACKAGE.parent).as_posix() if path.is_relative_to(_PACKAGE) else path}:{line}"


def _row(name: str, place: str) -> table.TypeInfo:
    """A type's row in the table of GGUF types."""
    try:
        return table.by_name(name)
    except KeyError:
        raise DeclarationError(
            f"{place}: {name} has no row in quants/table.py: name, id, block, bytes, row_meta, interleave"
        ) from None


@dataclass(frozen=True)
class Field:
    """One member of a block: its spelling ("f16", "u8[16]") and byte offset. Scalars read as values, arrays as
    addresses."""

    spec: str
    offset: int


FLOAT_SCALES = ("f16", "e8m0", "ue4m3")  # a number by itself: half float, 2^(e-128), or 8-bit float of NVFP4
# Integers to be multiplied by d of the block or row. odd4: s stands for 2s + 1; mid4: for s - 8; odd7: for 2s - 127.
# i7 and odd7 share a byte with the sub-block's shift bit. one: no scales at all, 1.
INT_SCALES = ("u8", "i8", "u4", "odd4", "mid4", "i7", "odd7", "one")


@dataclass(frozen=True, eq=False)
class Quant:
    """A declared type: everything derive/ needs to know about it.

    block: columns per block; fields: its members; sub: columns that share a scale (16 or 32); group: columns that share
    a stored "f16" scale; bits: width of a code; zero: the code of value 0; levels: value + zero for each code, when
    codes are indices of a table; scales: what scale(b, j) returns (FLOAT_SCALES or INT_SCALES, as stored);
    mins: what floor(b, j) returns: "f16", or integers "u8", "i8", "u4" to be multiplied by the block's dmin, or None;
    unit: factor of d and dmin; wider: panels may take over 3 % more bytes than the file, which buys a decode that keeps
    up with memory (api.quant_types() has the figure). A block's d and dmin are the fields or functions of these names.
    shift: what is added to the levels of sub-blocks whose shifted(b, j) is 1 (their second table); row: "f32" or "f16",
    a scale that stands at the start of every row and replaces d and dmin; meta: bytes before a row's first block;
    gain: factor of the row's scale in products (the reference has it there and not where rows are decoded).
    """

    name: str
    block: int
    fields: dict[str, Field]
    n_bytes: int
    sub: int
    group: int
    bits: int
    zero: int
    levels: tuple[int, ...] | None
    scales: str
    mins: str | None
    unit: float
    wider: bool
    shift: int
    row: str | None
    meta: int
    gain: float
    functions: dict

    is_float = False

    @property
    def top(self) -> int:
        """The largest code, or level of a code: some instruction sets multiply small ones faster."""
        return max(self.levels or [2**self.bits - 1]) + self.shift

    @property
    def int_scales(self) -> bool:
        return self.scales in INT_SCALES

    @property
    def int_mins(self) -> bool:
        return self.mins not in (None, "f16")

    @property
    def block_d(self) -> bool:
        """Blocks of 256 columns have a scale of their own."""
        return self.int_scales and self.row is None

    @property
    def shift_words(self) -> bool:
        """Panels keep the shift bits in words of their own, because the scales leave no room for them."""
        return self.shift != 0 and self.scales not in ("i7", "odd7")


@dataclass(frozen=True)
class Plain:
    """A type whose elements are numbers already: F32, F16, BF16. `elem` is the vector element, "bf16" kept as u16."""

    name: str
    elem: str
    n_bytes: int
    block: int = 1

    is_float, wider, row = True, False, None


def quant(
    *,
    block: int,
    bits: int,
    sub: int = 32,
    group: int | None = None,
    zero: int = 0,
    levels=None,
    scales: str = "f16",
    mins: str | None = None,
    unit: float = 1.0,
    wider: bool = False,
    shift: int = 0,
    row: str | None = None,
    gain: float = 1.0,
    **fields: str,
):
    """Class decorator: the class becomes a Quant named after it. Fields are listed in file order; sizes are checked
    against the GGUF table."""

    def declare(cls) -> Quant:
        frame = sys._getframe(1)  # the line of the decorator
        place = _place(frame.f_code.co_filename, frame.f_lineno)
        problem = functools.partial(_problem, f"{place}: {cls.__name__}")
        members, offset = {}, 0
        for name, spec in fields.items():
            spelled = re.fullmatch(r"(\w+?)(?:\[(\d+)\])?", str(spec))
            elem, count = spelled.groups() if spelled else ("", "")
            problem(elem not in _SIZES, f"{name}={spec!r}: a field is spelled f16 or u8[16], of {', '.join(_SIZES)}")
            members[name] = Field(spec, offset)
            offset += _SIZES[elem] * int(count or 1)
        known = _row(cls.__name__, place)
        problem(
            (block, offset) != (known.block, known.bytes),
            f"declared {offset} bytes per {block} columns, GGUF has {known.bytes} per {known.block}",
        )
        unknown = scales not in FLOAT_SCALES + INT_SCALES or mins not in (None, "f16", "u8", "i8", "u4")
        problem(unknown, f"no scales {scales!r} with mins {mins!r}")
        wrong_row = (row is None) != (known.row_meta == 0) or (row and (scales not in INT_SCALES or mins == "f16"))
        problem(wrong_row, f"row={row!r} with {known.row_meta} bytes before a row, scales {scales!r}")
        functions = {k: v for k, v in vars(cls).items() if callable(v)}
        problem((shift != 0) != ("shifted" in functions), "shift and shifted() go together")
        problem("codes" not in functions, "codes(b, j) is missing")
        problem(scales != "one" and "scale" not in functions, f"scale(b, j) is missing, which scales={scales!r} needs")
        problem(mins is not None and "floor" not in functions, f"floor(b, j) is missing, which mins={mins!r} needs")
        for name, needed in (("d", scales in INT_SCALES), ("dmin", mins not in (None, "f16"))):
            needed = needed and row is None and name not in {*fields, *functions}
            problem(needed, f"{name} is missing, a field or a function: what the integers are multiplied by")
        codes = tuple(levels) if levels else None
        return Quant(
            cls.__name__,
            block,
            members,
            offset,
            sub,
            group or sub,
            bits,
            zero,
            codes,
            scales,
            mins,
            unit,
            wider,
            shift,
            row,
            known.row_meta,
            gain,
            functions,
        )

    return declare


def check_names(fn) -> None:
    """DeclarationError where a function of a declaration uses a name that is nowhere defined; Numba says no line."""
    for step in dis.get_instructions(fn):
        name = step.argval
        if step.opname == "LOAD_GLOBAL" and name not in fn.__globals__ and not hasattr(builtins, name):
            place = _place(fn.__code__.co_filename, step.positions.lineno)
            raise DeclarationError(f"{place}: {fn.__qualname__} uses {name}, which is defined nowhere")


def _problem(whose: str, is_one: bool, text: str) -> None:
    if is_one:
        raise DeclarationError(f"{whose}: {text}")


def plain(name: str, elem: str) -> Plain:
    frame = sys._getframe(1)
    return Plain(name, elem, _row(name, _place(frame.f_code.co_filename, frame.f_lineno)).bytes)


@functools.cache
def get(name: str) -> Quant | Plain:
    """The declaration of a type by its ggml name. KeyError with the list of declared types; DeclarationError for a file
    that does not declare it."""
    file = name.lower()
    if file not in declared_files():
        raise KeyError(
            f"tensor type {name} has no kernels yet; there are: {', '.join(n.upper() for n in declared_files())}"
        )
    try:
        found = getattr(importlib.import_module(f"{__package__}.types.{file}"), name, None)
    except DeclarationError:
        raise
    except SyntaxError as error:
        raise DeclarationError(f"{_place(error.filename, error.lineno)}: {error.msg}") from None
    except Exception as error:
        path = str(_TYPES / f"{file}.py")
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        raise DeclarationError(f"{_place(path, (lines or [1])[-1])}: {type(error).__name__}: {error}") from None
    if not isinstance(found, Quant | Plain):
        raise DeclarationError(f"{_place(str(_TYPES / file) + '.py', 1)}: it declares no type {name}")
    return found


@functools.cache
def declared_files() -> tuple[str, ...]:
    return tuple(sorted(f.stem for f in _TYPES.glob("*.py") if f.stem != "__init__"))


def names() -> list[str]:
    """Names of all declared types, as ggml spells them: those kernels are made for."""
    return [f.upper() for f in declared_files()]


def file_types() -> list[str]:
    """Names of all types a tensor of a file may have: rows of a declared type, interleaved ones, and I2_S. Those whose
    file does not declare them are left out, with a warning that says why."""
    from .interleaved.weave import base_of, types

    good = [name for name in names() if _is_good(name)]
    in_files = [name for name in good if table.by_name(name).id >= 0]
    return in_files + [name for name in (*types(), "I2_S") if base_of(name) in good]


def _is_good(name: str) -> bool:
    try:
        get(name)
    except DeclarationError as error:
        log.warning("%s", error)
        return False
    return True
