"""The KV cache: for every layer one buffer of keys and one of values, each of a type, allocated at once.

Position p lies in cell p % n_cells. A layer that sees all positions has a cell for each of them; one with a sliding
window has a ring of as many as the rows of one step see. Where keys and values lie: kernels/attention/layout.py.
Pages come into being when cells are written, so an unused part of a long context costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.attention import layout
from ikpy_llm.kernels.kv.types import COLUMNS, MAX_HEAD, kv_type
from ikpy_llm.kernels.run.memory import Memory

UNIT = 256  # cells are a multiple of this, so that panels of every target are whole


def rounded(n_ctx: int) -> int:
    return -(-n_ctx // UNIT) * UNIT


def n_cells(n_ctx: int, window: int, n_step: int) -> int:
    """Cells of a layer for steps of at most n_step rows; window 0 = sees all positions."""
    return min(n_ctx, rounded(window + n_step)) if window else n_ctx


@dataclass(frozen=True)
class Types:
    """Types of keys and values, and which of them go through a Hadamard rotation."""

    k: str = "f16"
    v: str = "f16"
    khad: bool = False
    vhad: bool = False

    def spelled(self) -> str:
        """As flags of the command line."""
        return f"-ctk {self.k} -ctv {self.v}" + " -khad" * self.khad + " -vhad" * self.vhad

    def cell_bytes(self, n_head_kv: int, k_dim: int, v_dim: int) -> int:
        """Bytes of one position of a layer."""
        keys = layout.cache_bytes(self.k, n_head_kv, 1, k_dim, self.khad)
        return keys + layout.cache_bytes(self.v, n_head_kv, 1, v_dim, self.vhad)

    def check(self, k_dim: int, v_dim: int) -> None:
        """IkpyError where heads of these sizes cannot be kept so."""
        for flag, name, rotated, dim in ("k", self.k, self.khad, k_dim), ("v", self.v, self.vhad, v_dim):
            what = [f"-ct{flag} {name}"] * (not kv_type(name).is_plain) + [f"-{flag}had"] * rotated
            if what and dim > MAX_HEAD:
                raise IkpyError(
                    f"{' '.join(what)}: the model's heads have {dim} elements, accepted are up to {MAX_HEAD}; use f16, "
                    "bf16 or f32"
                )

    def of_latents(self, rank: int, n_rot: int) -> Types:
        """Those of a layer of latents, which are rows of keys; IkpyError where they cannot be kept so."""
        if self.v not in ("f16", self.k) or self.khad or self.vhad:
            raise IkpyError(
                f"{self.spelled()}: latents (DeepSeek) are kept in one cache, of the type of -ctk; with it -ctv f16 or "
                "the same is accepted, without -khad and -vhad"
            )
        if not kv_type(self.k).is_plain and (rank % COLUMNS or n_rot % COLUMNS or rank + n_rot > MAX_HEAD):
            raise IkpyError(
                f"-ctk {self.k}: the model's latents have {rank} and {n_rot} elements, accepted are multiples of "
                f"{COLUMNS}, up to {MAX_HEAD} together; use f16"
            )
        return Types(k=self.k)


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer's part."""

    n_cells: int
    window: int
    n_head: int
    n_head_kv: int
    k_dim: int
    v_dim: int
    types: Types = Types()

    @property
    def k_bytes(self) -> int:
        return layout.cache_bytes(self.types.k, self.n_head_kv, self.n_cells, self.k_dim, self.types.khad)

    @property
    def v_bytes(self) -> int:
        return layout.cache_bytes(self.types.v, self.n_head_kv, self.n_cells, self.v_dim, self.types.vhad)

    @property
    def n_bytes(self) -> int:
        return self.k_bytes + self.v_bytes


def layers(ops: Iterable, n_ctx: int, n_step: int, types: Types = Types()) -> dict[int, Layer]:
    """What the `attend` ops of a model's list need, by number of layer; latents are one row of keys per position."""
    out = {}
    for o in ops:
        if o.name == "latent_store":
            n, widths = n_cells(n_ctx, 0, n_step), [v.width for v in o.inputs]
            kept = Layer(n, 0, o.attrs["n_head"], 1, sum(widths), 0, types.of_latents(*widths))
            out[o.attrs["layer"]] = kept
        if o.name == "keys" and not o.output and types != Types():
            raise IkpyError(f"{types.spelled()}: with -mla 0 DeepSeek's keys and values are f16; use -mla 1 to 3")
        if o.name == "attend" and not o.attrs["latent"] and len(o.inputs) == 1:
            a, window = o.attrs, o.attrs["window"]
            dims = o.inputs[0].width // a["n_head"], o.output.width // a["n_head"]
            out[a["layer"]] = Layer(n_cells(n_ctx, window, n_step), window, a["n_head"], a["n_head_kv"], *dims, types)
            types.check(*dims)
    return out


def size_line(layers: Iterable[Layer]) -> str:
    """Sizes of the cache of these layers, in the words of ik_llama.cpp."""
    layers = list(layers)
    sizes = [sum(x.k_bytes for x in layers) / 2**20, sum(x.v_bytes for x in layers) / 2**20]
    types = layers[0].types if layers else Types()
    names = types.k + ", rotated" * types.khad, types.v + ", rotated" * types.vhad
    k, v = (f"{side} ({name}): {size:.2f} MiB" for side, name, size in zip("KV", names, sizes, strict=True))
    return f"KV self size = {sum(sizes):.2f} MiB, {k}, {v}"


class KVCache:
    """Memory for all layers, and the counters of the attention kernel."""

    def __init__(self, layers: dict[int, Layer], check: bool = False):
        self.layers = layers
        # Positions of one head are far apart, so with huge pages the first token would clear the whole cache (SmolLM2,
        # 4096 positions: 160 ms); without them generation at a depth of 3500 is at most 5 % slower.
        self._keys, self._values = (
            {i: Memory(size, fill=check, huge=False) for i, size in sizes.items()}
            for sizes in ({i: x.k_bytes for i, x in layers.items()}, {i: x.v_bytes for i, x in layers.items()})
        )
        most = max((layer.n_head for layer in layers.values()), default=1)
        self._counters = np.zeros(layout.n_counters(most), np.int64)

    @property
    def n_bytes(self) -> int:
        return sum(layer.n_bytes for layer in self.layers.values())

    def seen_bytes(self, n: int, rows: int = 1) -> int:
        """Bytes of keys and values that a step of `rows` rows reads when n positions (its own too) are there."""
        sizes = ((x.n_bytes // x.n_cells, x.window + rows - 1 if x.window else n) for x in self.layers.values())
        return sum(row * min(n, seen) for row, seen in sizes)

    def parts(self, layer: int, n: int) -> list[np.ndarray]:
        """The bytes of a layer's first n cells (whole units of them), keys then values, head by head: views, uint8.

        Of any type: heads come one after the other, and in a head units of cells.
        """
        x, out = self.layers[layer], []
        n_units = min(rounded(n), x.n_cells) // UNIT
        for memory in (self._keys[layer], self._values[layer]):
            for head in memory.bytes.reshape(x.n_head_kv, -1):
                out.append(head[: len(head) // (x.n_cells // UNIT) * n_units])
        return out

    def reset_counters(self) -> None:
        """They are zero before and after every step."""
        self._counters[:] = 0

    @property
    def counters(self) -> int:
        """Address of the counters."""
        return self._counters.ctypes.data

    def k(self, layer: int) -> int:
        """Address of a layer's keys."""
        return self._keys[layer].address

    def v(self, layer: int) -> int:
        """Address of a layer's values."""
        return self._values[layer].address
