"""What lowering knows, and the table of ops: how each becomes kernel calls, and what it costs. The ops are in ops/."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ikpy_llm.engine.cache import kv_cache
from ikpy_llm.engine.graph.graph import CELLS, SLOTS, TOKENS, Op, Value
from ikpy_llm.engine.program.records import At, Cost, Record, Scratch
from ikpy_llm.kernels.compiler.jit import Kernel
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.moe.layout import RoutesLayout

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


def routes_layout(ops: list[Op], low: Lowering) -> RoutesLayout | None:
    """How the experts of a step are listed; all layers have the same number of them."""
    sizes = {(o.attrs["n_used"], o.inputs[0].width) for o in ops if o.name == "route"}
    if not sizes:
        return None
    ((n_used, n_expert),) = sizes
    return RoutesLayout(low.n_rows, n_used, n_expert, 1 if low.n_rows == 1 else layout.gemm_tile())


def acts_layouts(ops: list[Op], low: Lowering) -> dict[Value, layout.ActsLayout]:
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


def record(o: Op, kernel: Kernel, words, reads=None, writes=None, cost=None) -> Record:
    """A record with the op's own inputs and output as what it reads and writes."""
    output = () if o.output is None else (o.output,)
    rows = (o.output or o.inputs[0]).rows
    rows = TOKENS if rows in (SLOTS, CELLS) else rows
    reads = tuple(o.inputs) if reads is None else reads
    writes = output if writes is None else writes
    return Record(kernel, tuple(words), reads, writes, o.name, o.label, cost or Cost(), rows)


def elementwise(o: Op, flops: int) -> Cost:
    """Cost of an op that reads its inputs and writes its output once; `flops` per element."""
    width = o.output.width
    return Cost(flops_row=flops * width, bytes_row=F32 * (sum(v.width for v in o.inputs) + width))


def state(value: Value) -> At:
    """The state block whose n_tokens counts the rows of `value`."""
    return At("state", value.rows)
