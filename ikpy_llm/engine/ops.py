"""The table of ops: how each becomes kernel calls, and what it costs. `lower` turns a model's op list into records."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ikpy_llm.engine import kv_cache
from ikpy_llm.engine.graph import CELLS, OUTPUTS, SLOTS, TOKENS, Op, Value
from ikpy_llm.engine.records import CLAIM, At, Cost, Record, Scratch
from ikpy_llm.kernels import attention_layout
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.jit import Kernel
from ikpy_llm.kernels.moe_layout import RoutesLayout

kernel_named = functools.cache(Kernel)  # a model names the same few kernels hundreds of times
F32 = 4  # bytes
F16 = 2
MAX_FLAVOURS = 3  # start arrays one quantize kernel can write

OPS: dict[str, Callable[[Op, Lowering], Record | list[Record]]] = {}


@dataclass
class Lowering:
    """What lowering needs to know: most rows of a step and of its outputs, threads, positions of the context, tensors.

    `packed`: matrices are woven into panels, else they are read from the file's rows. `n_step`: most rows of a step of
    any program over the same cache. `acts` is filled by `lower`: layout of each quantized value.
    """

    n_rows: int
    n_outputs: int
    n_threads: int
    n_ctx: int
    packed: bool
    tensors: Mapping[str, object]
    n_step: int = 512
    ser: tuple[int, float] = (0, 0.0)  # smart expert reduction: always so many, others above this share of the best
    kv: kv_cache.Types = kv_cache.Types()  # noqa: RUF009 (frozen)
    flash_attn: bool = True
    acts: dict[Value, layout.ActsLayout] = field(default_factory=dict)
    routes: RoutesLayout | None = None  # of the model's experts
    heads: dict[Value, int] = field(default_factory=dict)  # of values that are quantized head by head
    same: dict[Value, Value] = field(default_factory=dict)  # values that lie where another one does

    @functools.cached_property
    def totals(self) -> Scratch:
        """Memory of the prompt kernels, a part for each thread; one for all records, as a thread runs one at a time."""
        return Scratch(self.n_threads * layout.gemm_scratch_bytes(self.n_rows))

    @functools.cached_property
    def cell_totals(self) -> Scratch:
        """The same for products over all positions."""
        return Scratch(self.n_threads * layout.gemm_scratch_bytes(self.n_ctx))

    def totals_of(self, value: Value) -> tuple[Scratch, int]:
        """That memory and a thread's part of it, for products with the rows of `value`."""
        if value.rows == CELLS:
            return self.cell_totals, layout.gemm_scratch_bytes(self.n_ctx)
        return self.totals, layout.gemm_scratch_bytes(self.n_rows)

    def n_cells(self, window: int) -> int:
        """Cells of the KV cache in a layer with this window."""
        return kv_cache.n_cells(self.n_ctx, window, self.n_step)

    def type_of(self, name: str) -> str:
        return self.tensors[name].type_name

    def rows(self, value: Value) -> int:
        """Most rows a value can have."""
        if value.rows == SLOTS:
            return self.routes.n_slots
        if value.rows == CELLS:
            return self.n_ctx
        return self.n_rows if value.rows == TOKENS else self.n_outputs

    def columns(self, value: Value) -> int:
        """Activation columns per tile: 1 where steps are single tokens (GEMV), else what the prompt kernels use."""
        if value.rows == SLOTS:
            return self.routes.t
        return 1 if self.rows(value) == 1 or value.kind.startswith("acts_one") else layout.gemm_tile()

    def n_bytes(self, value: Value) -> int:
        """Bytes of the buffer of a value."""
        if value.kind == "routes":
            return self.routes.n_bytes
        if value.kind in ("keys", "values"):
            return self.n_ctx * value.width * F16
        if value in self.heads:
            return self.heads[value] * self.acts[value].n_bytes(self.rows(value), value.width)
        if value in self.acts:
            return self.acts[value].n_bytes(self.rows(value), value.width)
        return self.rows(value) * value.width * F32


def op(fn):
    """Register `fn(op, lowering) -> one Record or a list` under its name."""
    OPS[fn.__name__] = fn
    return fn


def lower(ops: list[Op], low: Lowering) -> list[Record]:
    """Records of all ops, in order."""
    low.routes = _routes_layout(ops, low)
    low.acts.update(_acts_layouts(ops, low))
    made = [OPS[o.name](o, low) for o in ops]
    return [r for one in made for r in (one if isinstance(one, list) else [one])]


def _routes_layout(ops: list[Op], low: Lowering) -> RoutesLayout | None:
    """How the experts of a step are listed; all layers have the same number of them."""
    sizes = {(o.attrs["n_used"], o.inputs[0].width) for o in ops if o.name == "route"}
    if not sizes:
        return None
    ((n_used, n_expert),) = sizes
    return RoutesLayout(low.n_rows, n_used, n_expert, 1 if low.n_rows == 1 else layout.gemm_tile())


def _acts_layouts(ops: list[Op], low: Lowering) -> dict[Value, layout.ActsLayout]:
    """One layout per quantized value, with the start values every matrix that reads it needs."""
    flavours: dict[Value, set] = {}
    for o in reversed(ops):
        if o.name.startswith("matmul"):
            flavours.setdefault(o.inputs[0], set()).add(layout.flavour(low.type_of(o.weights["w"])))
            if o.name == "matmul_heads":
                low.heads[o.inputs[0]] = o.attrs["n_head"]
        elif o.name == "gather":
            flavours.setdefault(o.inputs[0], set()).update(flavours[o.output])
    return {
        v: layout.ActsLayout(low.columns(v), tuple(sorted(f - {None})), v.kind.endswith("_float"))
        for v, f in flavours.items()
    }


def _record(o: Op, kernel: Kernel, words, reads=None, writes=None, cost=None) -> Record:
    """A record with the op's own inputs and output as what it reads and writes."""
    output = () if o.output is None else (o.output,)
    rows = (o.output or o.inputs[0]).rows
    rows = TOKENS if rows in (SLOTS, CELLS) else rows
    reads = tuple(o.inputs) if reads is None else reads
    writes = output if writes is None else writes
    return Record(kernel, tuple(words), reads, writes, o.name, o.label, cost or Cost(), rows)


def _elementwise(o: Op, flops: int) -> Cost:
    """Cost of an op that reads its inputs and writes its output once; `flops` per element."""
    width = o.output.width
    return Cost(flops_row=flops * width, bytes_row=F32 * (sum(v.width for v in o.inputs) + width))


def _state(value: Value) -> At:
    """The state block whose n_tokens counts the rows of `value`."""
    return At("state", value.rows)


@op
def get_rows(o: Op, low: Lowering) -> Record:
    """y[i] = scale * row ids[i] of the table"""
    w, y = o.weights["w"], o.output
    type_name = low.type_of(w)
    row_bytes = layout.file_bytes(type_name, y.width)
    words = At("file", w), row_bytes, At("ids"), y, y.width, float(o.attrs["scale"]), _state(y)
    cost = Cost(bytes_row=row_bytes + F32 * y.width)
    return _record(o, kernel_named("derive.get_rows", type=type_name), words, cost=cost)


def _norm(o: Op, n_parts: int = 1) -> Record:
    x, residual = o.inputs[0], o.inputs[1] if len(o.inputs) > 1 else 0
    sizes = x.width // n_parts, n_parts, float(o.attrs["eps"])
    words = x, At("file", o.weights["w"]), residual, o.output, *sizes, _state(x)
    kernel = kernel_named("rowwise.rms_norm", add=len(o.inputs) > 1)
    return _record(o, kernel, words, cost=_elementwise(o, 4))


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
    return _record(o, kernel_named("rowwise.add"), (x, y, o.output, x.width, _state(x)), cost=_elementwise(o, 1))


@op
def add_bias(o: Op, low: Lowering) -> Record:
    (x,) = o.inputs
    words = x, At("file", o.weights["bias"]), o.output, x.width, _state(x)
    return _record(o, kernel_named("rowwise.add_bias"), words, cost=_elementwise(o, 1))


@op
def scaled(o: Op, low: Lowering) -> Record:
    """y = x times one number of the file"""
    (x,) = o.inputs
    words = x, At("file", o.weights["factor"]), o.output, x.width, _state(x)
    return _record(o, kernel_named("rowwise.scaled"), words, cost=_elementwise(o, 1))


@op
def gated(o: Op, low: Lowering) -> Record:
    """y = act(gate) * up"""
    gate, up = o.inputs
    words = gate, up, o.output, gate.width, _state(gate)
    return _record(o, kernel_named("rowwise.gated", act=o.attrs["act"]), words, cost=_elementwise(o, 8))


@op
def softcap(o: Op, low: Lowering) -> Record:
    """y = cap * tanh(x / cap)"""
    (x,) = o.inputs
    words = x, o.output, x.width, float(o.attrs["cap"]), _state(x)
    return _record(o, kernel_named("rowwise.softcap"), words, cost=_elementwise(o, 8))


@op
def weighted(o: Op, low: Lowering) -> Record:
    """y = sigmoid(gate) * x, one number for each row"""
    x, gate = o.inputs
    words = x, gate, o.output, x.width, _state(x)
    return _record(o, kernel_named("rowwise.weighted"), words, cost=_elementwise(o, 1))


def _turning(o: Op) -> tuple:
    """Words of a rotation after the head size: table, and what norms the head before, if anything."""
    angles = o.attrs["angles"]
    w, eps = (At("file", o.weights["w"]), float(o.attrs["eps"])) if o.weights else (0, 0.0)
    return At("angles", angles), angles.n_rot, w, eps


@op
def rope(o: Op, low: Lowering) -> Record:
    """Pairs of columns of each head (after its norm) turned by the angles of the position"""
    (x,), n_head = o.inputs, o.attrs["n_head"]
    table, n_rot, w, eps = _turning(o)
    words = x, o.output, table, n_head, x.width // n_head, n_rot, w, eps, _state(x)
    kernel = kernel_named("heads.rope", style=o.attrs["style"], norm=bool(o.weights))
    return _record(o, kernel, words, cost=_elementwise(o, 7 if o.weights else 3))


@op
def last_rows(o: Op, low: Lowering) -> Record:
    (x,) = o.inputs
    return _record(
        o, kernel_named("rowwise.last_rows"), (x, o.output, x.width, At("state", TOKENS)), cost=_elementwise(o, 0)
    )


def deliver(x: Value) -> Record:
    """Rows of a result to where the state of the outputs says"""
    words, cost = (x, x.width, At("state", OUTPUTS)), Cost(bytes_row=2 * F32 * x.width)
    return Record(kernel_named("rowwise.deliver"), words, (x,), (), "deliver", "", cost, OUTPUTS)


def _kv_words(types: kv_cache.Types, khad, vhad) -> dict:
    """What of the cache's types is not the default, as parameters of kernels."""
    every = ("k_type", types.k), ("v_type", types.v), ("khad", types.khad and khad), ("vhad", types.vhad and vhad)
    return {name: value for name, value in every if value and value != "f16"}


@op
def kv_store(o: Op, low: Lowering) -> Record:
    """Append this step's keys (rotated here if they are not yet) and values, in their types, to the layer's cache."""
    (k, v), a = o.inputs, o.attrs
    n_head_kv, caches = a["n_head_kv"], (At("k", a["layer"]), At("v", a["layer"]))
    style = a.get("style", "")
    table, n_rot, w, eps = _turning(o) if style else (0, 0, 0, 0.0)
    sizes = n_head_kv, k.width // n_head_kv, v.width // n_head_kv, low.n_cells(a["window"])
    words = k, v, *caches, *sizes, table, n_rot, w, eps, _state(k)
    writes = (*caches, k) if style else caches
    written = low.kv.cell_bytes(n_head_kv, *sizes[1:3])
    cost = Cost(flops_row=3 * k.width if style else 0, bytes_row=F32 * (k.width + v.width) + written)
    types = _kv_words(low.kv, khad=sizes[1], vhad=sizes[2])
    kernel = kernel_named("heads.kv_store", style=style, norm=bool(o.weights), **types)
    return _record(o, kernel, words, writes=writes, cost=cost)


@op
def attend(o: Op, low: Lowering) -> Record:
    """softmax(q k^T * scale) v over the layer's cache, causal"""
    (q, *own), y, a = o.inputs, o.output, o.attrs
    n_head, n_head_kv, layer, window, latent = (a[k] for k in ("n_head", "n_head_kv", "layer", "window", "latent"))
    k_dim, v_dim, n_cells = q.width // a["n_head_all"], a["v_dim"], low.n_cells(window)
    caches, counters = own or (At("k", layer), At("k" if latent else "v", layer)), At("counters")
    if low.flash_attn:
        path, n_bytes = "attention.attend", attention_layout.scratch_bytes(low.n_rows, n_head, n_cells, v_dim)
    else:
        path, n_bytes = "attention_plain.attend", attention_layout.plain_scratch_bytes(low.n_threads, n_cells)
    scratch = Scratch(n_bytes)
    heads = n_head, n_head_kv, a["first_head"], a["n_head_all"]
    words = q, *caches, y, *heads, n_cells, window, float(a["scale"]), float(a["cap"]), scratch, counters, _state(q)
    how = {name: True for name, on in (("latent", latent), ("softcap", a["cap"])) if on}
    # what is made for one step is f16; latents are only keys
    types = kv_cache.Types() if own else kv_cache.Types(k=low.kv.k) if latent else low.kv
    if low.flash_attn and not latent:
        how |= attention_layout.narrow_tile(n_head // n_head_kv)
    cell = types.cell_bytes(n_head_kv, k_dim, 0 if latent else v_dim)
    cost = Cost(
        bytes_row=F32 * (q.width + y.width),
        flops_position=2 * n_head * (k_dim + v_dim),
        bytes_position=cell,
        window=window,
    )
    kernel = kernel_named(path, k_dim=k_dim, v_dim=v_dim, **how, **_kv_words(types, True, True))
    return _record(o, kernel, words, reads=(q, *caches), writes=(y, scratch, counters), cost=cost)


# ---- matrix products: the words of derive's kernels
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
    words = x, second, o.output, x.width, x.width, acts.stride, *flavours, float(o.attrs.get("eps", 0.0)), _state(x)
    cost = Cost(
        flops_row=8 * x.width, bytes_row=sum(F32 * v.width for v in o.inputs) + acts.n_bytes(1, x.width) // acts.t
    )
    return _record(o, kernel, words, cost=cost)


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
        words = source, row_bytes, x, acts.stride, start, y, y.width, *common, *totals, _state(x), CLAIM
    elif low.packed:
        kernel = kernel_named("derive.gemv", type=type_name, n=1)
        words = source, x, acts.stride, start, y, y.width, *common, CLAIM
    else:
        kernel = kernel_named("derive.gemv_rows", type=type_name)
        words = source, row_bytes, x, acts.stride, start, y, *common, CLAIM
    if x.rows == CELLS:
        bytes_seen = acts.n_bytes(1, x.width) // acts.t + F32 * y.width
        cost = Cost(flops_seen=2 * x.width * y.width, bytes_position=bytes_seen, bytes_once=row_bytes * y.width)
        return _record(o, kernel, words, cost=cost)
    cost = Cost(
        flops_row=2 * x.width * y.width,
        bytes_row=acts.n_bytes(1, x.width) // acts.t + F32 * y.width * (1 + bool(residual)),
        bytes_once=layout.weight_bytes(type_name, y.width, x.width) if low.packed else row_bytes * y.width,
    )
    return _record(o, kernel, words, cost=cost)


from ikpy_llm.engine import ops_mla, ops_moe  # noqa: E402, F401  (they register their ops)
