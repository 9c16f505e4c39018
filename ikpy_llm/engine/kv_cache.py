"""The KV cache: f16, for every layer one buffer of keys and one of values, allocated at once.

Position p lies in cell p % n_cells. A layer that sees all positions has a cell for each of them; one with a sliding
window has a ring of as many as the rows of one step see. Keys lie in panels of W cells,
k[kv_head][cell // W][head_dim][cell % W]; values as rows, v[kv_head][cell][head_dim].
Pages come into being when cells are written, so an unused part of a long context costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ikpy_llm.engine.memory import Memory
from ikpy_llm.kernels import attention_layout

UNIT = 256  # cells are a multiple of this, so that panels of every target are whole


def rounded(n_ctx: int) -> int:
    return -(-n_ctx // UNIT) * UNIT


def n_cells(n_ctx: int, window: int, n_step: int) -> int:
    """Cells of a layer for steps of at most n_step rows; window 0 = sees all positions."""
    return min(n_ctx, rounded(window + n_step)) if window else n_ctx


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer's part."""

    n_cells: int
    window: int
    n_head: int
    n_head_kv: int
    k_dim: int
    v_dim: int

    @property
    def k_bytes(self) -> int:
        return attention_layout.kcache_bytes(self.n_head_kv, self.n_cells, self.k_dim)

    @property
    def n_bytes(self) -> int:
        return self.k_bytes + attention_layout.vcache_bytes(self.n_head_kv, self.n_cells, self.v_dim)


def layers(ops: Iterable, n_ctx: int, n_step: int) -> dict[int, Layer]:
    """What the `attend` ops of a model's list need, by number of layer; latents are one row of keys per position."""
    out = {}
    for o in ops:
        if o.name == "latent_store":
            n = n_cells(n_ctx, 0, n_step)
            out[o.attrs["layer"]] = Layer(n, 0, o.attrs["n_head"], 1, sum(v.width for v in o.inputs), 0)
        if o.name == "attend" and not o.attrs["latent"] and len(o.inputs) == 1:
            a, window = o.attrs, o.attrs["window"]
            dims = o.inputs[0].width // a["n_head"], o.output.width // a["n_head"]
            out[a["layer"]] = Layer(n_cells(n_ctx, window, n_step), window, a["n_head"], a["n_head_kv"], *dims)
    return out


class KVCache:
    """Memory for all layers, and the counters of the attention kernel."""

    def __init__(self, layers: dict[int, Layer], check: bool = False):
        self.layers, self._start, total = layers, {}, 0
        for i, layer in layers.items():
            self._start[i] = total
            total += layer.n_bytes
        # Positions of one head are far apart, so with huge pages the first token would clear the whole cache (SmolLM2,
        # 4096 positions: 160 ms); without them generation at a depth of 3500 is at most 5 % slower.
        self.memory = Memory(total, fill=check, huge=False)
        most = max((layer.n_head for layer in layers.values()), default=1)
        self._counters = np.zeros(attention_layout.n_counters(most), np.int64)

    @property
    def n_bytes(self) -> int:
        return self.memory.n_bytes

    def seen_bytes(self, n: int, rows: int = 1) -> int:
        """Bytes of keys and values that a step of `rows` rows reads when n positions (its own too) are there."""
        sizes = ((x.n_bytes // x.n_cells, x.window + rows - 1 if x.window else n) for x in self.layers.values())
        return sum(row * min(n, seen) for row, seen in sizes)

    def parts(self, layer: int, n: int) -> list[np.ndarray]:
        """The bytes of a layer's first n cells (whole units of them), keys then values, head by head: views, uint8.

        Of any type: heads come one after the other, and in a head units of cells.
        """
        x, out, start = self.layers[layer], [], self._start[layer]
        n_units = min(rounded(n), x.n_cells) // UNIT
        for size in (x.k_bytes, x.n_bytes - x.k_bytes):
            for head in self.memory.bytes[start : start + size].reshape(x.n_head_kv, -1):
                out.append(head[: len(head) // (x.n_cells // UNIT) * n_units])
            start += size
        return out

    @property
    def counters(self) -> int:
        """Address of the counters."""
        return self._counters.ctypes.data

    def k(self, layer: int) -> int:
        """Address of a layer's keys."""
        return self.memory.address + self._start[layer]

    def v(self, layer: int) -> int:
        """Address of a layer's values."""
        return self.k(layer) + self.layers[layer].k_bytes
