"""Fusion rows: small rewrites of the op list, each switchable by name and each giving the same numbers as without it.

`expand` first turns every `linear` into `quantize` + `matmul`; the rows then make one op of neighbours that one
kernel can do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from ikpy_llm.engine.graph.graph import SLOTS, Graph, Op, Value
from ikpy_llm.engine.program.lowering import MAX_FLAVOURS
from ikpy_llm.kernels.derive import layout

ROWS: dict[str, Callable] = {}
PLANNED = ("overlap",)  # not a rewrite: the planner leaves out barriers between independent records


def row(fn):
    """Register a rewrite `fn(graph, ops) -> ops` under its name."""
    ROWS[fn.__name__] = fn
    return fn


def names() -> list[str]:
    return [*ROWS, *PLANNED]


def apply(graph: Graph, without: Iterable[str] = ()) -> list[Op]:
    """The graph's ops, expanded and rewritten by all rows except those named (`all`: none)."""
    without = set(without)
    ops = expand(graph)
    for name, rewrite in ROWS.items():
        if not without & {name, "all"}:
            ops = rewrite(graph, ops)
    return ops


def expand(graph: Graph) -> list[Op]:
    """linear(x) -> matmul(quantize(x)); experts(x) -> matmul_slots(gather(quantize(x)) or quantize_slots(x))"""
    out = []
    for op in graph.ops:
        if op.name not in ("linear", "experts", "per_head"):
            out.append(op)
            continue
        x, *routes = op.inputs
        flavour = layout.flavour(graph.tensors[op.weights["w"]].type_name)
        attrs, float_ = {"source": "plain", "flavour": flavour}, "_float" * (flavour is None)
        if op.name == "per_head":
            acts = graph.value(op.attrs["columns"], x.rows, "acts_heads" + float_)
            out.append(Op("quantize_heads", (x,), acts, attrs=attrs | op.attrs, label=op.label))
        elif op.name == "linear":
            acts = graph.value(x.width, x.rows, "acts" + float_)
            out.append(Op("quantize", (x,), acts, attrs=attrs, label=op.label))
        else:
            acts = graph.value(x.width, SLOTS, "acts" + float_)
            if x.rows == SLOTS:
                out.append(Op("quantize_slots", (x, *routes), acts, attrs=attrs, label=op.label))
            else:
                one = graph.value(x.width, x.rows, "acts_one" + float_)
                out.append(Op("quantize", (x,), one, attrs=attrs, label=op.label))
                out.append(Op("gather", (one, *routes), acts, label=op.label))
        name = {"linear": "matmul", "experts": "matmul_slots", "per_head": "matmul_heads"}[op.name]
        out.append(Op(name, (acts, *routes), op.output, dict(op.weights), dict(op.attrs), op.label))
    return out


def _uses(ops: list[Op]) -> Counter:
    return Counter(v for op in ops for v in op.inputs)


def _producer(ops: list[Op]) -> dict[Value, Op]:
    return {op.output: op for op in ops if op.output is not None}


def _reading(op: Op, same: dict[Value, Value]) -> Op:
    """`op` with inputs replaced by what is in their place now."""
    if same.keys().isdisjoint(op.inputs):
        return op
    return replace(op, inputs=tuple(same.get(v, v) for v in op.inputs))


def _rewritten(ops: list[Op], changed: dict[int, Op | None]) -> list[Op]:
    """`ops` with some (by id) replaced, or left out where None."""
    return [new for op in ops if (new := changed.get(id(op), op)) is not None]


@row
def share_acts(graph: Graph, ops: list[Op]) -> list[Op]:
    """Matrices that read the same input share its quantized form, as far as one kernel can write what they all need."""
    first: dict[tuple[Value, str], tuple[Value, set]] = {}  # (input, kind) -> (quantized form, start values it has)
    same: dict[Value, Value] = {}
    gathered: dict[tuple[Value, ...], Value] = {}
    out = []
    for op in ops:
        if op.name == "quantize":
            key, need = (op.inputs[0], op.output.kind), {op.attrs["flavour"]}
            acts, have = first.get(key, (None, set()))
            if acts is not None and len(have | need) <= MAX_FLAVOURS:
                have |= need
                same[op.output] = acts
                continue
            first[key] = op.output, need
        op = _reading(op, same)
        if op.name == "gather":
            same_rows = gathered.setdefault(op.inputs, op.output)
            if same_rows is not op.output:
                same[op.output] = same_rows
                continue
        out.append(op)
    return out


def _into_quantize(ops: list[Op], name: str) -> list[Op]:
    """quantize(f(...)) -> one op, where nobody else reads f's result."""
    uses, producer, changed = _uses(ops), _producer(ops), {}
    for op in ops:
        plain = op.name in ("quantize", "quantize_slots") and op.attrs["source"] == "plain"
        source = producer.get(op.inputs[0]) if plain else None
        if source is not None and source.name == name and uses[source.output] == 1:
            attrs, inputs = {"source": name, **source.attrs}, (*source.inputs, *op.inputs[1:])
            changed[id(source)] = None
            changed[id(op)] = Op(op.name, inputs, op.output, dict(source.weights), attrs, source.label)
    return _rewritten(ops, changed)


@row
def norm_quantize(graph: Graph, ops: list[Op]) -> list[Op]:
    """The norm of a row is quantized while the row is in cache."""
    return _into_quantize(ops, "rms_norm")


@row
def gated_quantize(graph: Graph, ops: list[Op]) -> list[Op]:
    """act(gate) * up is quantized without being written."""
    return _into_quantize(ops, "gated")


def _into(ops: list[Op], first: str, then: str, name: str) -> list[Op]:
    """first(x) whose result only one op `then` reads, as one op `name` of x and the other input of `then`."""
    uses, producer, changed = _uses(ops), _producer(ops), {}
    for op in ops:
        either = 2 if then == "add" else 1  # otherwise it is the first input
        for i, value in enumerate(op.inputs[:either] if op.name == then else ()):
            source = producer.get(value)
            if source is not None and source.name == first and uses[value] == 1 and id(source) not in changed:
                inputs = (source.inputs[0], *op.inputs[:i], *op.inputs[i + 1 :])
                weights, attrs = source.weights | op.weights, source.attrs | op.attrs
                changed[id(source)] = None
                changed[id(op)] = Op(name, inputs, op.output, weights, attrs, source.label)
                break
    return _rewritten(ops, changed)


@row
def norm_add(graph: Graph, ops: list[Op]) -> list[Op]:
    """The norm of what a block leaves is added to the residual stream at once."""
    return _into(ops, "rms_norm", "add", "norm_add")


@row
def norm_rope(graph: Graph, ops: list[Op]) -> list[Op]:
    """A head is rotated while it is normed."""
    return _into(ops, "head_norm", "rope", "rope")


@row
def rope_store(graph: Graph, ops: list[Op]) -> list[Op]:
    """Keys are rotated on their way into the cache."""
    return _into(ops, "rope", "kv_store", "kv_store")


@row
def matmul_bias(graph: Graph, ops: list[Op]) -> list[Op]:
    """The matrix kernel adds the bias to its sums."""
    uses, producer, changed = _uses(ops), _producer(ops), {}
    for op in ops:
        source = producer.get(op.inputs[0]) if op.name == "add_bias" else None
        if source is not None and source.name == "matmul" and uses[source.output] == 1:
            changed[id(source)] = None
            changed[id(op)] = Op(
                "matmul", source.inputs, op.output, {**source.weights, **op.weights}, dict(source.attrs), source.label
            )
    return _rewritten(ops, changed)


@row
def matmul_residual(graph: Graph, ops: list[Op]) -> list[Op]:
    """The matrix kernel adds the residual stream to its sums."""
    uses, producer, changed = _uses(ops), _producer(ops), {}
    for op in ops:
        if op.name != "add":
            continue
        for x, y in (op.inputs, op.inputs[::-1]):
            source = producer.get(y)
            if (
                source is not None
                and source.name == "matmul"
                and uses[y] == 1
                and x is not y
                and len(source.inputs) == 1
            ):
                changed[id(source)] = None
                changed[id(op)] = Op(
                    "matmul", (*source.inputs, x), op.output, dict(source.weights), dict(source.attrs), source.label
                )
                break
    return _rewritten(ops, changed)


@row
def combine_add(graph: Graph, ops: list[Op]) -> list[Op]:
    """What the experts leave is added to the residual stream at once."""
    uses, producer, changed = _uses(ops), _producer(ops), {}
    for op in ops:
        for x, y in (op.inputs, op.inputs[::-1]) if op.name == "add" else ():
            source = producer.get(y)
            if source is not None and source.name == "combine" and uses[y] == 1 and x is not y:
                changed[id(source)] = None
                changed[id(op)] = Op("combine", (*source.inputs, x), op.output, label=source.label)
                break
    return _rewritten(ops, changed)


@row
def in_place(graph: Graph, ops: list[Op]) -> list[Op]:
    """What changes single numbers writes over its input where nobody else reads that; not the last op of all."""
    uses, out, same = _uses(ops), [], {}
    for op in ops:
        new = _reading(op, same)
        fits = op.name in ("rope", "add_bias", "scaled", "scaled_slots") and op is not ops[-1]
        if fits and uses[op.inputs[0]] == 1:
            same[op.output] = new.inputs[0]
            new = replace(new, output=new.inputs[0])
        out.append(new)
    return out
