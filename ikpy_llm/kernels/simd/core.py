"""Vectors and register tiles as Numba types, and `op`: one portable LLVM body per operation with optional native
bodies per instruction set."""

from __future__ import annotations

import operator
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from .shared import intrinsic, shared
from .target import current

TARGET = current()
I1, I8, I16, I32, I64, F32T = (
    ir.IntType(1),
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.FloatType(),
)
ELEMENTS = {
    "b1": I1,
    "u8": I8,
    "i8": I8,
    "u16": I16,
    "i16": I16,
    "i32": I32,
    "u32": I32,
    "i64": I64,
    "f16": ir.HalfType(),
    "f32": F32T,
    "f64": ir.DoubleType(),
}
SCALARS = {
    "u8": types.uint8,
    "i8": types.int8,
    "u16": types.uint16,
    "i16": types.int16,
    "i32": types.int32,
    "u32": types.uint32,
    "i64": types.int64,
    "f32": types.float32,
    "f64": types.float64,
}


class Vec(types.Type):
    """`lanes` elements of `elem` ("u8", "f32", ...) as one LLVM vector value."""

    def __init__(self, elem: str, lanes: int):
        self.elem, self.lanes, self.ir = elem, lanes, ir.VectorType(ELEMENTS[elem], lanes)
        super().__init__(f"{elem}x{lanes}")

    def of(self, elem: str, lanes: int | None = None) -> Vec:
        return Vec(elem, lanes or self.lanes)

    @property
    def is_float(self) -> bool:
        return self.elem[0] == "f"

    @property
    def is_unsigned(self) -> bool:
        return self.elem[0] in "ub"


class Tile(types.Type):
    """n vectors held as one SSA value, so that unrolling happens while the IR is built and not in the source."""

    def __init__(self, vec: Vec, n: int):
        self.vec, self.n, self.ir = vec, n, ir.ArrayType(vec.ir, n)
        super().__init__(f"{vec}[{n}]")


@register_model(Vec)
@register_model(Tile)
class _SimdModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ir)


def lane_type(t):
    """Vec of a Vec or Tile, other types as they are."""
    return t.vec if isinstance(t, Tile) else t


def lift(arg_types, build: Callable):
    """Apply `build(types, values)` to each vector of tile arguments; vectors beside a tile are used with every
    element."""
    n = next((t.n for t in arg_types if isinstance(t, Tile)), None)
    if n is None:
        return None

    def each(b, values, result_ir):
        out = ir.Constant(ir.ArrayType(result_ir, n), ir.Undefined)
        for i in range(n):
            out = b.insert_value(
                out,
                build(
                    [
                        b.extract_value(v, i) if isinstance(t, Tile) else v
                        for t, v in zip(arg_types, values, strict=True)
                    ]
                ),
                i,
            )
        return out

    return n, each


class _Op:
    """The bodies of one operation; `pick` takes the last registered native body whose features and condition hold."""

    def __init__(self, name, typer, body):
        self.name, self.typer, self.body, self.natives = name, typer, body, []

    def native(self, *features: str, when=lambda *t: True):
        """Register a native body for targets that have all `features`; `when` sees the argument types."""

        def register(fn):
            self.natives.insert(0, (frozenset(features), when, fn))
            return fn

        return register

    def pick(self, *arg_types):
        return next((fn for need, when, fn in self.natives if need <= TARGET.isa and when(*arg_types)), self.body)

    def signature(self, arg_types):
        lifted = lift(arg_types, None)
        ret = self.typer(*map(lane_type, arg_types))
        if ret is None:
            return None
        return signature(Tile(ret, lifted[0]) if lifted else ret, *arg_types)

    def emit(self, b, sig, values):
        arg_types = [a.instance_type if isinstance(a, types.TypeRef) else a for a in sig.args]
        flat = [lane_type(t) for t in arg_types]
        ret = lane_type(sig.return_type)
        body = self.pick(*flat)
        flat_sig = signature(ret, *flat)
        lifted = lift(arg_types, lambda vals: body(b, flat_sig, *vals))
        return lifted[1](b, values, ret.ir) if lifted else body(b, flat_sig, *values)


OPS: dict[str, _Op] = {}


def op(typer):
    """Decorator: `body(builder, signature, *llvm_values)` becomes a function usable in kernels; `typer(*types)`
    gives the result type.

    A type passed as an argument (`cast(F32, v)`) reaches typer and body as that type. Tile arguments apply the
    body to each vector.
    """
    return lambda body: _function_of(typer, body)


@shared
def _function_of(typer, body):
    entry = OPS[body.__name__] = _Op(body.__name__, typer, body)
    n = body.__code__.co_argcount - 2
    names = ", ".join(f"a{i}" for i in range(n))

    def build(arg_types):
        plain = [a.instance_type if isinstance(a, types.TypeRef) else a for a in arg_types]
        sig = entry.signature(plain)
        if sig is None:
            return None
        sig = signature(sig.return_type, *arg_types)

        def codegen(ctx, b, sig, values):
            out = entry.emit(b, sig, values)
            return ctx.get_dummy_value() if out is None else out

        return sig, codegen

    scope = {"build": build}
    exec(
        f"def {body.__name__}(typingctx{', ' if n else ''}{names}): return build([{names}])", scope
    )  # intrinsics need a fixed arity
    fn = scope[body.__name__]
    fn.__doc__ = body.__doc__
    out = intrinsic(fn)
    out.op = entry
    return out


EMULATED: dict[str, Callable] = {}  # intrinsic -> body(builder, *values) in portable IR; emulated.py fills it


def call(b, name: str, ret, *values):
    """Call an LLVM intrinsic or C symbol by name."""
    if TARGET.emulated and name.startswith(("llvm.x86.", "llvm.aarch64.")):
        return EMULATED[name](b, *values)
    fn = cgutils.get_or_insert_function(b.module, ir.FunctionType(ret, [v.type for v in values]), name)
    return b.call(fn, values)


def float_fn(b, name, v, *more):
    suffix = f"v{v.type.count}f32" if isinstance(v.type, ir.VectorType) else "f32"
    return call(b, f"llvm.{name}.{suffix}", v.type, v, *more)


def shuffle(b, x, y, indices):
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(indices)), list(indices)))


def broadcast(b, scalar, vt: Vec):
    v = b.insert_element(ir.Constant(vt.ir, ir.Undefined), scalar, I32(0))
    return shuffle(b, v, v, [0] * vt.lanes)


def constant(vt: Vec, value) -> ir.Constant:
    """A vector constant from one number or a list of `lanes` numbers."""
    return ir.Constant(vt.ir, list(value) if isinstance(value, (list, tuple, range)) else [value] * vt.lanes)


def to_lane(b, vt: Vec, value, ty):
    """Convert a Numba scalar value to the element type of `vt`."""
    have, want = value.type, vt.ir.element
    if vt.is_float:
        if isinstance(have, ir.IntType):
            return b.sitofp(value, want)
        return (
            value
            if have == want
            else b.fptrunc(value, want)
            if isinstance(have, ir.DoubleType)
            else b.fpext(value, want)
        )
    if have.width == want.width:
        return value
    signed = getattr(ty, "signed", True)
    return b.trunc(value, want) if have.width > want.width else b.sext(value, want) if signed else b.zext(value, want)


def assembly(b, ret, text: str, constraints: str, *values, ordered: bool = False):
    """Inline assembly without memory accesses, which LLVM may move and share; ordered: which stays in the order it was
    emitted in, among others of the kind and loads."""
    kind = ir.FunctionType(ret, [v.type for v in values])
    return b.call(ir.InlineAsm(kind, text, constraints, ordered), values, attrs=("nounwind", "readnone"))


def fence(b):
    """No load moves across this place. LLVM hoists loads until registers run out, and puts aside what it needs."""
    b.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", True), [], attrs=("nounwind",))


def held(b, value: ir.Constant):
    """The constant as a value whose bits LLVM does not know. x86 code that is loaded anywhere reaches a constant in
    two instructions and a register; this one stays in a register, or on the stack where an instruction can name it.
    """
    if TARGET.name != "avx2" or TARGET.emulated:
        return value
    return assembly(b, value.type, "", "=x,0", value)


# ---- operators: one row each. name of the integer, unsigned and float instruction
_BINARY = {
    operator.add: ("add", "add", "fadd"),
    operator.sub: ("sub", "sub", "fsub"),
    operator.mul: ("mul", "mul", "fmul"),
    operator.truediv: (None, None, "fdiv"),
    operator.and_: ("and_", "and_", None),
    operator.or_: ("or_", "or_", None),
    operator.xor: ("xor", "xor", None),
    operator.lshift: ("shl", "shl", None),
    operator.rshift: ("ashr", "lshr", None),
}
_COMPARE = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}
_inplace = {
    operator.add: operator.iadd,
    operator.sub: operator.isub,
    operator.mul: operator.imul,
    operator.and_: operator.iand,
    operator.or_: operator.ior,
    operator.xor: operator.ixor,
    operator.lshift: operator.ilshift,
    operator.rshift: operator.irshift,
    operator.truediv: operator.itruediv,
}


def _emit_binary(key, b, vt, x, y):
    if key in _COMPARE:
        if vt.is_float:
            return b.fcmp_ordered(_COMPARE[key], x, y)
        return (b.icmp_unsigned if vt.is_unsigned else b.icmp_signed)(_COMPARE[key], x, y)
    signed, unsigned, float_ = _BINARY[key]
    return getattr(b, float_ if vt.is_float else unsigned if vt.is_unsigned else signed)(x, y)


def _register(key):
    def result(x, y):
        vec = lane_type(x if isinstance(x, (Vec, Tile)) else y)
        ret = vec.of("b1") if key in _COMPARE else vec
        n = next((t.n for t in (x, y) if isinstance(t, Tile)), None)
        return vec, Tile(ret, n) if n else ret

    class Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) != 2 or not any(isinstance(a, (Vec, Tile)) for a in args):
                return None
            if not all(isinstance(a, (Vec, Tile, types.Number)) for a in args):
                return None
            vec, ret = result(*args)
            if any(isinstance(a, (Vec, Tile)) and lane_type(a) != vec for a in args):
                return None
            fixed = [
                a if isinstance(a, (Vec, Tile)) else (SCALARS[vec.elem] if vec.is_float else types.int64) for a in args
            ]
            return signature(ret, *fixed)

    def lower(ctx, b, sig, values):
        vec, ret = result(*sig.args)
        args = []
        for t, v in zip(sig.args, values, strict=True):
            args.append(v if isinstance(t, (Vec, Tile)) else broadcast(b, to_lane(b, vec, v, t), vec))
        lifted = lift(sig.args, lambda vals: _emit_binary(key, b, vec, *vals))
        return lifted[1](b, args, lane_type(ret).ir) if lifted else _emit_binary(key, b, vec, *args)

    for name in filter(None, (key, _inplace.get(key))):
        infer_global(name)(Template)
        for x in (Vec, Tile, types.Number):
            for y in (Vec, Tile, types.Number):
                if (x, y) != (types.Number, types.Number):
                    lower_builtin(name, x, y)(lower)


for _key in (*_BINARY, *_COMPARE):
    _register(_key)
