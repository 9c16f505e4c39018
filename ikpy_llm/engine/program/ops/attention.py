"""Ops of attention: rotary embedding, storing keys and values, attending."""

from __future__ import annotations

from ikpy_llm.engine.cache import kv_cache
from ikpy_llm.engine.graph.graph import Op
from ikpy_llm.engine.program.lowering import F32, Lowering, elementwise, kernel_named, op, record, state
from ikpy_llm.engine.program.records import At, Cost, Record, Scratch
from ikpy_llm.kernels.attention import layout as attention_layout


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
    words = x, o.output, table, n_head, x.width // n_head, n_rot, w, eps, state(x)
    kernel = kernel_named("rows.heads.rope", style=o.attrs["style"], norm=bool(o.weights))
    return record(o, kernel, words, cost=elementwise(o, 7 if o.weights else 3))


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
    words = k, v, *caches, *sizes, table, n_rot, w, eps, state(k)
    writes = (*caches, k) if style else caches
    written = low.kv.cell_bytes(n_head_kv, *sizes[1:3])
    cost = Cost(flops_row=3 * k.width if style else 0, bytes_row=F32 * (k.width + v.width) + written)
    types = _kv_words(low.kv, khad=sizes[1], vhad=sizes[2])
    kernel = kernel_named("rows.heads.kv_store", style=style, norm=bool(o.weights), **types)
    return record(o, kernel, words, writes=writes, cost=cost)


@op
def attend(o: Op, low: Lowering) -> Record:
    """softmax(q k^T * scale) v over the layer's cache, causal"""
    (q, *own), y, a = o.inputs, o.output, o.attrs
    n_head, n_head_kv, layer, window, latent = (a[k] for k in ("n_head", "n_head_kv", "layer", "window", "latent"))
    k_dim, v_dim, n_cells = q.width // a["n_head_all"], a["v_dim"], low.n_cells(window)
    caches, counters = own or (At("k", layer), At("k" if latent else "v", layer)), At("counters")
    if low.flash_attn:
        path, n_bytes = "attention.flash.attend", attention_layout.scratch_bytes(low.n_rows, n_head, n_cells, v_dim)
    else:
        path, n_bytes = "attention.plain.attend", attention_layout.plain_scratch_bytes(low.n_threads, n_cells)
    scratch = Scratch(n_bytes)
    heads = n_head, n_head_kv, a["first_head"], a["n_head_all"]
    words = q, *caches, y, *heads, n_cells, window, float(a["scale"]), float(a["cap"]), scratch, counters, state(q)
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
    return record(o, kernel, words, reads=(q, *caches), writes=(y, scratch, counters), cost=cost)
