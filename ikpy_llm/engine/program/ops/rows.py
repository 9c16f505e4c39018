"""Ops over rows: embedding, norms, sums, activations, and handing over results."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import OUTPUTS, TOKENS, Op, Value
from ikpy_llm.engine.program.lowering import F32, Lowering, elementwise, kernel_named, op, record, state
from ikpy_llm.engine.program.records import At, Cost, Record
from ikpy_llm.kernels.derive import layout


@op
def get_rows(o: Op, low: Lowering) -> Record:
    """y[i] = scale * row ids[i] of the table"""
    w, y = o.weights["w"], o.output
    type_name = low.type_of(w)
    row_bytes = layout.file_bytes(type_name, y.width)
    words = At("file", w), row_bytes, At("ids"), y, y.width, float(o.attrs["scale"]), state(y)
    cost = Cost(bytes_row=row_bytes + F32 * y.width)
    return record(o, kernel_named("derive.get_rows", type=type_name), words, cost=cost)


def _norm(o: Op, n_parts: int = 1) -> Record:
    x, residual = o.inputs[0], o.inputs[1] if len(o.inputs) > 1 else 0
    sizes = x.width // n_parts, n_parts, float(o.attrs["eps"])
    words = x, At("file", o.weights["w"]), residual, o.output, *sizes, state(x)
    kernel = kernel_named("rows.rowwise.rms_norm", add=len(o.inputs) > 1)
    return record(o, kernel, words, cost=elementwise(o, 4))


@op
def rms_norm(o: Op, low: Lowering) -> Record:
    """y = x / sqrt(mean(x^2) + eps) * w"""
    return _norm(o)


@op
def norm_add(o: Op, low: Lowering) -> Record:
    """y = residual + rms_norm(x)"""
    return _norm(o)


@op
def head_norm(o: Op, low: Lowering) -> Record:
    """rms_norm of each head"""
    return _norm(o, o.attrs["n_head"])


@op
def add(o: Op, low: Lowering) -> Record:
    x, y = o.inputs
    return record(o, kernel_named("rows.rowwise.add"), (x, y, o.output, x.width, state(x)), cost=elementwise(o, 1))


@op
def add_bias(o: Op, low: Lowering) -> Record:
    (x,) = o.inputs
    words = x, At("file", o.weights["bias"]), o.output, x.width, state(x)
    return record(o, kernel_named("rows.rowwise.add_bias"), words, cost=elementwise(o, 1))


@op
def scaled(o: Op, low: Lowering) -> Record:
    """y = x times one number of the file"""
    (x,) = o.inputs
    words = x, At("file", o.weights["factor"]), o.output, x.width, state(x)
    return record(o, kernel_named("rows.rowwise.scaled"), words, cost=elementwise(o, 1))


@op
def gated(o: Op, low: Lowering) -> Record:
    """y = act(gate) * up"""
    gate, up = o.inputs
    words = gate, up, o.output, gate.width, state(gate)
    return record(o, kernel_named("rows.rowwise.gated", act=o.attrs["act"]), words, cost=elementwise(o, 8))


@op
def softcap(o: Op, low: Lowering) -> Record:
    """y = cap * tanh(x / cap)"""
    (x,) = o.inputs
    words = x, o.output, x.width, float(o.attrs["cap"]), state(x)
    return record(o, kernel_named("rows.rowwise.softcap"), words, cost=elementwise(o, 8))


@op
def weighted(o: Op, low: Lowering) -> Record:
    """y = sigmoid(gate) * x, one number for each row"""
    x, gate = o.inputs
    words = x, gate, o.output, x.width, state(x)
    return record(o, kernel_named("rows.rowwise.weighted"), words, cost=elementwise(o, 1))


@op
def last_rows(o: Op, low: Lowering) -> Record:
    (x,) = o.inputs
    return record(
        o, kernel_named("rows.rowwise.last_rows"), (x, o.output, x.width, At("state", TOKENS)), cost=elementwise(o, 0)
    )


def deliver(x: Value) -> Record:
    """Rows of a result to where the state of the outputs says"""
    words, cost = (x, x.width, At("state", OUTPUTS)), Cost(bytes_row=2 * F32 * x.width)
    return Record(kernel_named("rows.rowwise.deliver"), words, (x,), (), "deliver", "", cost, OUTPUTS)
