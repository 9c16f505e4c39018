"""The ops of layers with experts: choosing them, and matrix products over the rows of each."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import SLOTS, Op
from ikpy_llm.engine.program.lowering import F32, MAX_FLAVOURS, Lowering, kernel_named, op, record, state
from ikpy_llm.engine.program.ops.matmul import SOURCES
from ikpy_llm.engine.program.records import CLAIM, At, Cost, Record
from ikpy_llm.kernels.derive import layout

STATE = At("state", SLOTS)


@op
def route(o: Op, low: Lowering) -> list[Record]:
    """Experts of each row and their weights, then which rows each expert has"""
    (logits,), y, a, at = o.inputs, o.output, o.attrs, low.routes
    bias = At("file", o.weights["bias"]) if o.weights else 0
    single = at.t == 1
    groups = a["n_group"], a["n_group_used"]
    words = logits, bias, y, at.weights, at.places, at.groups, at.n_expert, at.n_used, *groups
    words += int(a["norm"]), float(a["scale"]), low.ser[0], float(low.ser[1]), state(logits), STATE
    score = a["group_score"] if a["n_group"] > 1 else ""
    kernel = kernel_named("moe.route.route", gating=a["gating"], group_score=score, single=single)
    cost = Cost(flops_row=8 * at.n_expert, bytes_row=F32 * at.n_expert)
    made = [record(o, kernel, words, writes=(y, STATE), cost=cost)]
    if not single:
        words = y, at.places, at.order, at.groups, at.n_expert, at.n_used, state(logits), STATE
        made.append(record(o, kernel_named("moe.route.group", t=at.t), words, reads=(y,), writes=(y, STATE)))
    return made


@op
def gather(o: Op, low: Lowering) -> list[Record]:
    """Quantized rows as tiles, expert by expert; a single row stays where it is, for all experts"""
    x, routes = o.inputs
    if low.routes.t == 1:
        low.same[o.output] = x
        return []
    acts, one, n_slices = low.acts[o.output], low.acts[x], -(-x.width // layout.SLICE)
    n_words = one.n_words
    words = x, one.stride, n_words, n_slices, o.output, acts.stride, routes, low.routes.order, low.routes.groups
    kernel = kernel_named("moe.route.gather", t=acts.t)
    cost = Cost(bytes_row=2 * 4 * n_words * n_slices * low.routes.n_used)
    return [record(o, kernel, (*words, state(x)), cost=cost)]


@op
def quantize_slots(o: Op, low: Lowering) -> Record:
    """The rows of each expert (plain, or act(gate) * up) as the tiles of codes the matrix kernels read"""
    *inputs, routes = o.inputs
    x, acts, n_slices = inputs[0], low.acts[o.output], -(-o.output.width // layout.SLICE)
    second = inputs[1] if len(inputs) > 1 else 0
    source = o.attrs["act"] if second else SOURCES[o.attrs["source"]]
    stored = [zero * 256 + sub for zero, sub in acts.stored]
    flavours = stored + [0] * (MAX_FLAVOURS - len(stored))
    called = kernel_named("derive.quantize", source=source, t=acts.t, is_float=acts.is_float)
    words = called, routes, low.routes.groups, 0, x, second, F32 * x.width, 0, x.width
    words += o.output, x.width, acts.stride, n_slices, *flavours, STATE
    n_bytes = F32 * x.width * len(inputs) + acts.n_bytes(1, x.width) // acts.t
    cost = Cost(flops_row=8 * x.width * low.routes.n_used, bytes_row=n_bytes * low.routes.n_used)
    return record(o, kernel_named("moe.grouped.quantize", t=acts.t, ragged=True), words, cost=cost)


def grouped_product(low: Lowering, w: str, sizes, groups, x, acts, y, totals, state: At, shared=False):
    """(kernel, words, bytes of a matrix) of products with the matrices of tensor w, each of `sizes` (rows, k).

    groups: routes, offset of the groups there, number of uniform groups; y: where, bytes from row to row and from
    matrix to matrix, elements from column to column; totals: memory and a thread's part; shared: all groups have one x.
    """
    type_name, (rows, k), ragged = low.type_of(w), sizes, not groups[2]
    start = 0 if acts.is_float else acts.start(layout.flavour(type_name))
    row_bytes = layout.file_bytes(type_name, k)
    n_bytes = layout.weight_bytes(type_name, rows, k) if low.packed else row_bytes * rows
    matrix, to, y_stride = (At("panel" if low.packed else "file", w), n_bytes, row_bytes), y[:3], y[3]
    words = *groups, *matrix, x, acts.stride, -(-k // layout.SLICE), start, *to
    if acts.t > 1:
        called = kernel_named("derive.gemm", type=type_name, rows_layout=not low.packed)
        kernel = kernel_named("moe.grouped.gemm", t=acts.t, ragged=ragged)
        return kernel, (called, *words, y_stride, rows, k, *totals, state, CLAIM), n_bytes
    plain = kernel_named("derive.gemv_rows", type=type_name)
    called = kernel_named("derive.gemv", type=type_name, n=1) if low.packed else plain
    kernel = kernel_named("moe.grouped.gemv", ragged=ragged, rows_layout=not low.packed, shared=shared)
    return kernel, (called, *words, rows, k, state, CLAIM), n_bytes


@op
def matmul_slots(o: Op, low: Lowering) -> Record:
    """y = W_e x for the rows of each expert e"""
    (x, routes), y, at = o.inputs, o.output, low.routes
    source, acts, totals = low.same.get(x, x), low.acts[x], (low.totals, layout.gemm_scratch_bytes(low.n_rows))
    sizes, groups, to = (y.width, x.width), (routes, at.groups, 0), (y, F32 * y.width, 0, y.width)
    shared = source is not x
    kernel, words, n_bytes = grouped_product(
        low, o.weights["w"], sizes, groups, source, acts, to, totals, STATE, shared
    )
    cost = Cost(
        flops_row=2 * x.width * y.width * at.n_used,
        bytes_row=(acts.n_bytes(1, x.width) // acts.t + F32 * y.width) * at.n_used,
        bytes_once=n_bytes * (at.n_used if acts.t == 1 else at.n_expert),
    )
    return record(o, kernel, words, reads=(source, routes), cost=cost)


@op
def scaled_slots(o: Op, low: Lowering) -> Record:
    """y = x times the number that the file has for the row's expert"""
    (x, routes), n_used = o.inputs, low.routes.n_used
    words = x, At("file", o.weights["factors"]), o.output, x.width, routes, low.routes.groups
    cost = Cost(flops_row=x.width * n_used, bytes_row=2 * F32 * x.width * n_used)
    return record(o, kernel_named("moe.route.scaled"), words, cost=cost)


@op
def combine(o: Op, low: Lowering) -> Record:
    """The weighted sum of what the experts made of each row (plus the residual)"""
    x, routes, *residual = o.inputs
    at, state = low.routes, At("state", o.output.rows)
    words = x, *(residual or (0,)), o.output, x.width, routes, at.weights, at.places, at.n_used, state
    cost = Cost(flops_row=2 * at.n_used * x.width, bytes_row=F32 * x.width * (at.n_used + 1 + len(residual)))
    return record(o, kernel_named("moe.route.combine", add=bool(residual)), words, cost=cost)
