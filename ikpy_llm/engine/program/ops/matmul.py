"""Matrix products and the quantization of what goes into them: the words of derive's kernels."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import CELLS, Op
from ikpy_llm.engine.program.lowering import F32, MAX_FLAVOURS, Lowering, kernel_named, op, record, state
from ikpy_llm.engine.program.records import CLAIM, At, Cost, Record
from ikpy_llm.kernels.derive import layout

SOURCES = {"plain": "plain", "rms_norm": "norm", "gated": ""}  # what quantize does on the way; gated: by its act


@op
def quantize(o: Op, low: Lowering) -> Record:
    """x (plain), its norm, or act(gate) * up, as the tiles of codes the matrix kernels read"""
    source, x, acts = o.attrs["source"], o.inputs[0], low.acts[o.output]
    if source == "gated":
        second = o.inputs[1]
    else:
        second = At("file", o.weights["w"]) if o.weights else 0
    stored = [zero * 256 + sub for zero, sub in acts.stored]
    flavours = stored + [0] * (MAX_FLAVOURS - len(stored))
    kernel = kernel_named("derive.quantize", source=SOURCES[source] or o.attrs["act"], t=acts.t, is_float=acts.is_float)
    words = x, second, o.output, x.width, x.width, acts.stride, *flavours, float(o.attrs.get("eps", 0.0)), state(x)
    cost = Cost(
        flops_row=8 * x.width, bytes_row=sum(F32 * v.width for v in o.inputs) + acts.n_bytes(1, x.width) // acts.t
    )
    return record(o, kernel, words, cost=cost)


@op
def matmul(o: Op, low: Lowering) -> Record:
    """y = W x (+ bias) (+ residual)"""
    x, y, w, bias = o.inputs[0], o.output, o.weights["w"], o.weights.get("bias")
    acts, type_name = low.acts[x], low.type_of(w)
    residual = o.inputs[1] if len(o.inputs) > 1 else 0
    start = 0 if acts.is_float else acts.start(layout.flavour(type_name))
    row_bytes = layout.file_bytes(type_name, x.width)
    first = o.attrs.get("first", 0)
    before = first // layout.width() * layout.panel_bytes(type_name, x.width) if low.packed else first * row_bytes
    source = At("panel" if low.packed else "file", w, before)
    common = y.width, x.width, At("file", bias) if bias else 0, residual  # rows, k, what is added
    if acts.t > 1:
        kernel = kernel_named("derive.gemm", type=type_name, rows_layout=not low.packed)
        totals = low.totals_of(x)
        words = source, row_bytes, x, acts.stride, start, y, y.width, *common, *totals, state(x), CLAIM
    elif low.packed:
        kernel = kernel_named("derive.gemv", type=type_name, n=1)
        words = source, x, acts.stride, start, y, y.width, *common, CLAIM
    else:
        kernel = kernel_named("derive.gemv_rows", type=type_name)
        words = source, row_bytes, x, acts.stride, start, y, *common, CLAIM
    if x.rows == CELLS:
        bytes_seen = acts.n_bytes(1, x.width) // acts.t + F32 * y.width
        cost = Cost(flops_seen=2 * x.width * y.width, bytes_position=bytes_seen, bytes_once=row_bytes * y.width)
        return record(o, kernel, words, cost=cost)
    cost = Cost(
        flops_row=2 * x.width * y.width,
        bytes_row=acts.n_bytes(1, x.width) // acts.t + F32 * y.width * (1 + bool(residual)),
        bytes_once=layout.weight_bytes(type_name, y.width, x.width) if low.packed else row_bytes * y.width,
    )
    return record(o, kernel, words, cost=cost)
