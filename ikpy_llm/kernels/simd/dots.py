"""Sums of many u8 x s8 products: how this target adds them up fastest.

With a dot-product instruction every product goes to its 32-bit accumulator. AVX2 without one multiplies pairs into 16
bits: as many products as fit are added there first (8 where codes stay below 16), which halves the work. Codes above
127, whose pairs would not fit, are taken as code - 128 there: size times the other factor with its sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir
from numba.core.typing.templates import signature

from . import ops
from .core import I1, TARGET, Vec, assembly, call, constant, held
from .ops import I8V, I32V, U8
from .target import sums_in_16_bits

_INTRINSICS = {"vpmaddubsw": "llvm.x86.avx2.pmadd.ub.sw", "vpmaddwd": "llvm.x86.avx2.pmadd.wd"}
_PAIRS = Vec("i16", 2 * I32V.lanes)


@dataclass(frozen=True)
class Dots:
    """Sums for codes up to `top`. open(acc) -> partial sum, up to `length` times add, close(acc, partial sum) -> acc;
    weights(stored(code vector)) is what add takes. All of them emit code at b.

    Where pairs16, a partial sum may start at given 16-bit pairs instead, and scaled(acc, partial sum, scales) closes it
    times 16-bit integers; acc may be None.
    """

    top: int
    vectors: int | None = None  # code vectors of a partial sum, where that is not decided here

    @property
    def centred(self) -> bool:
        """The sums are those of code - 128."""
        return TARGET.pairs16 and self.top > 127

    @property
    def length(self) -> int:
        """Products between open and close."""
        if self.vectors or not TARGET.pairs16:
            return self.vectors or 8
        return sums_in_16_bits(min(self.top, 128))

    def stored(self, b, codes):
        """A code vector as it is kept for products."""
        return b.xor(codes, held(b, constant(U8, 128))) if self.centred else codes

    def weights(self, b, stored) -> tuple:
        if not self.centred:
            return (stored,)
        return call(b, f"llvm.abs.v{U8.lanes}i8", U8.ir, stored, ir.Constant(I1, 0)), stored

    def open(self, b, acc):
        return None if TARGET.pairs16 else acc

    def add(self, b, partial, weights: tuple, codes):
        if not TARGET.pairs16:
            dot, args = ops.dot4_small if self.top < 128 else ops.dot4, (I32V, U8, I8V)
            return dot.op.pick(*args)(b, signature(I32V, *args), partial, weights[0], codes)
        if self.centred:
            codes = call(b, "llvm.x86.avx2.psign.b", U8.ir, codes, weights[1])
        if partial is None:
            return call(b, _INTRINSICS["vpmaddubsw"], _PAIRS.ir, weights[0], codes)
        return _product_added(b, "vpmaddubsw", "vpaddw", partial, weights[0], codes)

    def close(self, b, acc, partial):
        if not TARGET.pairs16:
            return partial
        return _product_added(b, "vpmaddwd", "vpaddd", acc, partial, held(b, constant(_PAIRS, 1)), ordered=self.centred)

    def scaled(self, b, acc, partial, scales):
        if self.centred and acc is not None:
            return _product_added(b, "vpmaddwd", "vpaddd", acc, partial, scales, ordered=True)
        products = call(b, _INTRINSICS["vpmaddwd"], I32V.ir, partial, scales)
        return products if acc is None else b.add(acc, products)


def _product_added(b, multiply: str, add: str, acc, x, y, ordered: bool = False):
    """add(acc, multiply(x, y)), in assembly: of plain sums LLVM would make trees, which need more registers than there
    are."""
    if TARGET.emulated:
        return b.add(acc, call(b, _INTRINSICS[multiply], acc.type, x, y))
    text = f"{multiply} $1, $2, $0\n\t{add} $3, $0, $0"
    return assembly(b, acc.type, text, "=&x,x,x,x", y, x, acc, ordered=ordered)
