"""A block of a declared type as a Numba type: `b.qs` is the address of an array field, `b.d` the value of a scalar
field."""

from __future__ import annotations

import functools
import types as pytypes

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import lower_getattr_generic, models, register_model

from ..quants.base import Quant, check_names
from ..quants.grids import Table
from ..simd.ops import byte_table, inline
from ..simd.shared import intrinsic

_SCALARS = {
    "f16": (types.float32, ir.HalfType()),
    "f32": (types.float32, ir.FloatType()),
    "u16": (types.int64, ir.IntType(16)),
    "u32": (types.int64, ir.IntType(32)),
    "u8": (types.int64, ir.IntType(8)),
    "i8": (types.int64, ir.IntType(8)),
}


class Block(types.Type):
    """Address of a block of type `quant`."""

    def __init__(self, quant: Quant):
        self.members = quant.fields
        super().__init__(f"Block({quant.name})")


@register_model(Block)
class _BlockModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.IntType(64))


@infer_getattr
class _BlockAttributes(AttributeTemplate):
    key = Block

    def generic_resolve(self, block, name):
        member = block.members.get(name)
        return None if member is None else _SCALARS.get(member.spec, (types.int64, None))[0]


@lower_getattr_generic(Block)
def _member(ctx, b, block, address, name):
    member = block.members[name]
    p = b.add(address, address.type(member.offset))
    if member.spec not in _SCALARS:
        return p
    kind, llvm_type = _SCALARS[member.spec]
    value = b.load(b.inttoptr(p, llvm_type.as_pointer()))
    value.align = 1
    if kind == types.float32:
        return b.fpext(value, ir.FloatType()) if llvm_type != ir.FloatType() else value
    return (b.sext if member.spec[0] == "i" else b.zext)(value, ir.IntType(64))


@functools.cache
def block_at(quant: Quant):
    """Function address -> block of that type, for use in kernels."""
    block = Block(quant)

    @intrinsic
    def at(typingctx, address):
        return block(types.int64), lambda ctx, b, sig, values: values[0]

    return at


@functools.cache
def compiled(fn):
    """A declaration's function for use in kernels: itself and the plain functions and tables of quants/ it calls become
    inlined Numba functions."""
    scope = dict(fn.__globals__)
    check_names(fn)
    for name in fn.__code__.co_names:
        value = scope.get(name)
        if isinstance(value, pytypes.FunctionType) and ".quants." in value.__module__:
            scope[name] = compiled(value)
        elif isinstance(value, Table):
            scope[name] = byte_table(value.build())
    return inline(pytypes.FunctionType(fn.__code__, scope, fn.__name__, fn.__defaults__, fn.__closure__))
