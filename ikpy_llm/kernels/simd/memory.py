"""Vector types of the target, and the operations between memory and registers."""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types

from .core import F32T, I8, I32, I64, TARGET, Tile, Vec, broadcast, float_fn, op, to_lane
from .shared import intrinsic, shared

LANES = TARGET.lanes  # f32 lanes of a vector: also the number of rows in a weight panel
F32, I32V, U32V = Vec("f32", LANES), Vec("i32", LANES), Vec("u32", LANES)
F16, U16 = Vec("f16", LANES), Vec("u16", LANES)
U8, I8V, I16V = Vec("u8", 4 * LANES), Vec("i8", 4 * LANES), Vec("i16", 2 * LANES)
U8L, I8L = Vec("u8", LANES), Vec("i8", LANES)  # one byte per f32 lane
U8X8, U8X16, U8X32 = Vec("u8", 8), Vec("u8", 16), Vec("u8", 32)
U16X8, U16X16 = Vec("u16", 8), Vec("u16", 16)
U32X4, U32X8, I32X8, I8X32 = Vec("u32", 4), Vec("u32", 8), Vec("i32", 8), Vec("i8", 32)

f32, i64 = types.float32, types.int64
inline = shared(njit(forceinline=True, error_model="numpy"))  # for helper functions of kernels


def _address(b, addr, ty):
    return b.inttoptr(addr, ty.as_pointer())


def emit_load(b, addr, ty):
    value = b.load(_address(b, addr, ty))
    value.align = 1
    return value


def emit_store(b, value, addr):
    done = b.store(value, _address(b, addr, value.type))
    done.align = 1


def emit_at(b, base, offset: int):
    """base + offset bytes."""
    return b.add(base, base.type(offset)) if offset else base


def emit_offset(b, base, stride, i):
    return base if i == 0 else b.add(base, b.mul(stride, ir.Constant(stride.type, i)))


# ---------------------------------------------------------------- memory
@op(lambda vt, addr: vt)
def load(b, sig, vt, addr):
    """load(VT, address) -> vector; no alignment needed."""
    return emit_load(b, addr, sig.return_type.ir)


@op(lambda addr, v: types.void)
def store(b, sig, addr, v):
    """store(address, vector)."""
    emit_store(b, v, addr)


def _define_tile_ops():
    """Tile constructors need the literal n, so they are intrinsics of their own."""

    def maker(name, doc, element, n_args, result=lambda vt: vt):
        names = [f"a{i}" for i in range(n_args)]

        def build(vt, n, args):
            if not isinstance(n, types.IntegerLiteral):
                return None
            vec = vt.instance_type
            tile = Tile(result(vec), n.literal_value)

            def codegen(ctx, b, sig, values):
                out = ir.Constant(tile.ir, ir.Undefined)
                for i in range(tile.n):
                    out = b.insert_value(out, element(b, vec, i, *values[2:]), i)
                return out

            return tile(vt, n, *[types.int64] * n_args), codegen

        scope = {"build": build}
        tail = ", ".join(names)
        exec(f"def {name}(typingctx, vt, n{', ' + tail if tail else ''}): return build(vt, n, [{tail}])", scope)
        scope[name].__doc__ = doc
        return intrinsic(prefer_literal=True)(scope[name])

    zero = maker("tile_zeros", "tile_zeros(VT, n) -> n zero vectors.", lambda b, vt, i: ir.Constant(vt.ir, None), 0)
    ld = maker(
        "tile_load",
        "tile_load(VT, n, address, stride) -> vectors at address + i * stride bytes.",
        lambda b, vt, i, addr, stride: emit_load(b, emit_offset(b, addr, stride, i), vt.ir),
        2,
    )
    spl = maker(
        "tile_splat",
        "tile_splat(VT, n, address, stride) -> the element at address + i * stride in every lane of vector i.",
        lambda b, vt, i, addr, stride: broadcast(b, emit_load(b, emit_offset(b, addr, stride, i), vt.ir.element), vt),
        2,
    )

    def quad(b, vt, i, addr, stride):
        wide = Vec("i32", vt.lanes // 4)
        return b.bitcast(broadcast(b, emit_load(b, emit_offset(b, addr, stride, i), I32), wide), vt.ir)

    bc4 = maker(
        "tile_splat4",
        "tile_splat4(VT, n, address, stride) -> the 4 bytes at address + i * stride repeated through vector i.",
        quad,
        2,
    )

    @intrinsic(prefer_literal=True)
    def get(typingctx, tile, i):
        """get(tile, i) -> vector i; i is a literal."""
        if not isinstance(tile, Tile) or not isinstance(i, types.IntegerLiteral):
            return None
        return tile.vec(tile, i), lambda ctx, b, sig, values: b.extract_value(values[0], i.literal_value)

    @intrinsic
    def tile_store(typingctx, addr, stride, tile):
        """tile_store(address, stride, tile): vector i goes to address + i * stride."""

        def codegen(ctx, b, sig, values):
            for i in range(sig.args[2].n):
                emit_store(b, b.extract_value(values[2], i), emit_offset(b, values[0], values[1], i))
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64, tile), codegen

    @intrinsic
    def outer_fma(typingctx, acc, x, y):
        """outer_fma(acc, x, y): acc[i * m + j] + x[i] * y[j], rounded once; tiles of n * m, n and m vectors."""
        if not all(isinstance(t, Tile) for t in (acc, x, y)) or acc.n != x.n * y.n or not acc.vec == x.vec == y.vec:
            return None

        def codegen(ctx, b, sig, values):
            out, xs, ys = values
            for i in range(x.n):
                for j in range(y.n):
                    k, xi, yj = i * y.n + j, b.extract_value(xs, i), b.extract_value(ys, j)
                    out = b.insert_value(out, float_fn(b, "fma", xi, yj, b.extract_value(values[0], k)), k)
            return out

        return acc(acc, x, y), codegen

    return zero, ld, spl, bc4, get, tile_store, outer_fma


tile_zeros, tile_load, tile_splat, tile_splat4, get, tile_store, outer_fma = _define_tile_ops()


def emit_prefetch(b, addr, write: bool = False, level: int = 1):
    from numba.core import cgutils

    p = b.inttoptr(addr, I8.as_pointer())
    fn_type = ir.FunctionType(ir.VoidType(), [p.type, I32, I32, I32])
    fn = cgutils.get_or_insert_function(b.module, fn_type, "llvm.prefetch.p0")
    b.call(fn, [p, I32(int(write)), I32(4 - level), I32(1)])


@op(lambda addr: types.void)
def prefetch(b, sig, addr):
    """Ask for the cache line at address."""
    emit_prefetch(b, addr)


@op(lambda addr: types.void)
def prefetch_l2(b, sig, addr):
    """Ask for the cache line at address, into the second-level cache: for more than the first has room for."""
    emit_prefetch(b, addr, level=2)


def _scalar_op(name, elem):
    def reader(b, sig, addr):
        value = emit_load(b, addr, ir.HalfType() if elem == "f16" else Vec(elem, 1).ir.element)
        if elem == "f16":
            return b.fpext(value, F32T)
        if sig.return_type == types.int64 and value.type.width < 64:
            return (b.zext if elem[0] == "u" else b.sext)(value, I64)
        return value

    reader.__name__ = "load_" + name
    reader.__doc__ = f"load_{name}(address) -> scalar" + (", widened to int64." if elem[0] in "ui" else ".")
    # `op` counts the arguments of the body
    return op(lambda addr: {"f32": f32, "f16": f32, "f64": types.float64}.get(elem, types.int64))(reader)


load_u8, load_i8, load_u16, load_i16, load_i32, load_u32, load_i64 = (
    _scalar_op(e, e) for e in ("u8", "i8", "u16", "i16", "i32", "u32", "i64")
)
load_f32, load_f16, load_f64 = (_scalar_op(e, e) for e in ("f32", "f16", "f64"))


def _scalar_store(elem):
    def writer(b, sig, addr, x):
        vt = Vec(elem, 1)
        if elem == "f16":
            emit_store(b, b.fptrunc(x, ir.HalfType()), addr)
        else:
            emit_store(b, to_lane(b, vt, x, sig.args[1]), addr)

    writer.__name__ = "store_" + elem
    writer.__doc__ = f"store_{elem}(address, scalar)."
    return op(lambda addr, x: types.void)(writer)


store_u8, store_i8, store_i16, store_i32, store_i64, store_f32, store_f16 = (
    _scalar_store(e) for e in ("u8", "i8", "i16", "i32", "i64", "f32", "f16")
)


__all__ = [n for n in dir() if n[0] != "_" and n not in ("annotations", "ir", "njit", "types")]
