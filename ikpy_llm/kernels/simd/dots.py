"""Sums of many u8 x s8 products: how this target adds them up fastest.

With a dot-product instruction every product goes to its 32-bit accumulator. AVX2 without one multiplies pairs into 16
bits: as many products as fit are added there first (8 where codes stay below 16), which halves the work, and codes
above 127, whose pairs would saturate, are taken apart into their nibbles.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir
from numba.core.typing.templates import signature

from . import ops
from .core import TARGET, Vec, call, constant
from .ops import I8V, I32V, U8

_PAIRS = Vec("i16", 2 * I32V.lanes)
_ROOM = 32767 // (2 * 127)  # what codes of one row may sum up to before a pair of products leaves 16 bits


def _pair_products(b, acc, u, s):
    """acc.i16[j] + u.u8[2j] * s.i8[2j] + u.u8[2j+1] * s.i8[2j+1]; acc None: 0. In assembly, because LLVM would make
    trees of the sums, which need more registers than there are."""
    if acc is None:
        return call(b, "llvm.x86.avx2.pmadd.ub.sw", _PAIRS.ir, u, s)
    results = ir.LiteralStructType([acc.type, acc.type])
    text = "vpmaddubsw $2, $3, $1\n\tvpaddw $1, $0, $0"
    asm = ir.InlineAsm(ir.FunctionType(results, [s.type, u.type, acc.type]), text, "=x,=&x,x,x,0")
    return b.extract_value(b.call(asm, [s, u, acc]), 0)


@dataclass(frozen=True)
class Dots:
    """Sums for codes up to `top`. open(acc) -> partial sums, up to `length` times add, close(acc, partial sums) -> acc;
    weights(code vector) is what add takes. All of them emit code at b."""

    top: int

    @property
    def paired(self) -> bool:
        """16-bit partial sums."""
        return "avx2" in TARGET.isa and not {"avxvnni", "avx512vnni"} & TARGET.isa

    @property
    def parts(self) -> int:
        """Vectors that a partial sum takes beside the accumulator."""
        return 0 if not self.paired else 2 if self.top > 127 else 1

    @property
    def length(self) -> int:
        """Products between open and close."""
        if not self.paired:
            return 8
        fit = _ROOM // (15 if self.parts == 2 else self.top)
        return min(8, 1 << fit.bit_length() - 1)

    def weights(self, b, codes) -> list:
        if self.parts < 2:
            return [codes]
        low = constant(U8, 15)
        shifted = b.bitcast(b.lshr(b.bitcast(codes, _PAIRS.ir), constant(_PAIRS, 4)), U8.ir)
        return [b.and_(codes, low), b.and_(shifted, low)]

    def open(self, b, acc) -> list:
        return [None] * self.parts if self.paired else [acc]

    def add(self, b, partial: list, weights: list, codes) -> list:
        if not self.paired:
            dot, args = ops.dot4_small if self.top < 128 else ops.dot4, (I32V, U8, I8V)
            return [dot.op.pick(*args)(b, signature(I32V, *args), partial[0], weights[0], codes)]
        return [_pair_products(b, s, w, codes) for s, w in zip(partial, weights, strict=True)]

    def close(self, b, acc, partial: list):
        if not self.paired:
            return partial[0]
        for i, s in enumerate(partial):
            acc = b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", I32V.ir, s, constant(_PAIRS, 16**i)))
        return acc
