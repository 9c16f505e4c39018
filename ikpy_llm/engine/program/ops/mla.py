"""The ops of latent attention: a matrix for each head, latents in the cache, keys and values made of them."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import CELLS, Op
from ikpy_llm.engine.program.lowering import F16, F32, MAX_FLAVOURS, Lowering, kernel_named, op, record, state
from ikpy_llm.engine.program.ops.moe import grouped_product
from ikpy_llm.engine.program.records import At, Cost, Record
from ikpy_llm.kernels.attention.layout import cache_bytes
from ikpy_llm.kernels.derive import layout


def latent_type(types) -> dict:
    """What of a cache of latents is not the default, as parameters of kernels."""
    return {} if types.k == "f16" else {"k_type": types.k}


@op
def quantize_heads(o: Op, low: Lowering) -> Record:
    """The first columns of each head, head by head, as the tiles of codes the matrix kernels read"""
    (x,), n_head, acts = o.inputs, o.attrs["n_head"], low.acts[o.output]
    k, x_head = o.output.width, x.width // n_head
    stored = [zero * 256 + sub for zero, sub in acts.stored]
    flavours = stored + [0] * (MAX_FLAVOURS - len(stored))
    called = kernel_named("derive.quantize", source="plain", t=acts.t, is_float=acts.is_float)
    words = called, 0, 0, n_head, x, 0, 0, F32 * x_head, x.width, o.output, k, acts.stride, -(-k // layout.SLICE)
    cost = Cost(flops_row=8 * n_head * k, bytes_row=n_head * (F32 * k + acts.n_bytes(1, k) // acts.t))
    return record(
        o, kernel_named("moe.grouped.quantize", t=acts.t, ragged=False), (*words, *flavours, state(x)), cost=cost
    )


@op
def matmul_heads(o: Op, low: Lowering) -> Record:
    """y_h = W_h x_h for every head h"""
    (x,), y, n_head, n_out = o.inputs, o.output, o.attrs["n_head"], o.attrs["n_out"]
    acts, sizes, to = low.acts[x], (n_out, x.width), (y, 0, F32 * o.attrs["y_head"], y.width)
    kernel, words, n_bytes = grouped_product(
        low, o.weights["w"], sizes, (0, 0, n_head), x, acts, to, low.totals_of(x), state(x)
    )
    cost = Cost(
        flops_row=2 * n_head * x.width * n_out,
        bytes_row=n_head * (acts.n_bytes(1, x.width) // acts.t + F32 * n_out),
        bytes_once=n_bytes * n_head,
    )
    return record(o, kernel, words, cost=cost)


@op
def rope_part(o: Op, low: Lowering) -> Record:
    """The last columns of each head, turned, into the last ones of another value or in place"""
    x, y, angles, n_head = o.inputs[0], o.output, o.attrs["angles"], o.attrs["n_head"]
    heads = [(v, v.width // n_head, v.width // n_head - angles.n_rot) for v in (x, y)]
    words = *heads[0], *heads[1], At("angles", angles), n_head, angles.n_rot, state(x)
    cost = Cost(flops_row=3 * n_head * angles.n_rot, bytes_row=2 * F32 * n_head * angles.n_rot)
    return record(o, kernel_named("attention.mla.rope_part", style=o.attrs["style"]), words, cost=cost)


@op
def latent_store(o: Op, low: Lowering) -> Record:
    """One row of the cache for each row: the normed latent and the turned columns all heads share"""
    (c, pe), a = o.inputs, o.attrs
    cache = At("k", a["layer"])
    words = c, pe, cache, c.width, pe.width, low.n_cells(0), At("file", o.weights["w"]), float(a["eps"])
    words += At("angles", a["angles"]), state(c)
    width = c.width + pe.width
    cost = Cost(flops_row=4 * c.width + 3 * pe.width, bytes_row=F32 * width + cache_bytes(low.kv.k, 1, 1, width))
    kernel = kernel_named("attention.mla.latent_store", style=a["style"], **latent_type(low.kv))
    return record(o, kernel, words, writes=(cache,), cost=cost)


@op
def latents(o: Op, low: Lowering) -> Record:
    """Columns of the cached rows of all positions as f32"""
    cache, k_dim, width = At("k", o.attrs["layer"]), o.attrs["k_dim"], o.output.width
    words = cache, o.attrs["first"], o.output, width, At("state", CELLS)
    cost = Cost(bytes_position=cache_bytes(low.kv.k, 1, 1, width) + F32 * width)
    return record(
        o, kernel_named("attention.mla.latents", k_dim=k_dim, **latent_type(low.kv)), words, reads=(cache,), cost=cost
    )


@op
def keys(o: Op, low: Lowering) -> Record:
    """Keys of every head in panels: into the cache, or made of cached latents for this step"""
    (kv, pe), a, target = o.inputs, o.attrs, o.output or At("k", o.attrs["layer"])
    sizes = a["n_head"], a["n_nope"], a["n_rot"], low.n_cells(0)
    words = kv, kv.width // a["n_head"], pe, target, *sizes, state(kv)
    cost = _moved((F32 + F16) * a["n_head"] * (a["n_nope"] + a["n_rot"]), not o.output)
    return record(o, kernel_named("attention.mla.keys"), words, writes=(target,), cost=cost)


@op
def values(o: Op, low: Lowering) -> Record:
    """Values of every head as rows: into the cache, or made of cached latents for this step"""
    (kv, _), a = o.inputs, o.attrs
    target = o.output or At("v", a["layer"])
    words = kv, kv.width // a["n_head"], a["n_nope"], target, a["n_head"], a["v_dim"], low.n_cells(0), state(kv)
    cost = _moved((F32 + F16) * a["n_head"] * a["v_dim"], not o.output)
    return record(o, kernel_named("attention.mla.values"), words, reads=(kv,), writes=(target,), cost=cost)


def _moved(n_bytes: int, own: bool) -> Cost:
    """Cost of moving so many bytes for each row of the step, or for each position."""
    return Cost(bytes_row=n_bytes) if own else Cost(bytes_position=n_bytes)
