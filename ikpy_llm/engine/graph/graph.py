"""The graph builder: a model's function calls it once and leaves a flat list of ops. Weights are named as in the file.

Every value is a matrix f32 [rows][width], row-major; `rows` is the number of tokens of the step, or of wanted outputs.
A weight is a matrix [outputs][inputs], inputs contiguous, as GGUF stores it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ikpy_llm.engine.file.derived import Derived, rows_of
from ikpy_llm.engine.graph.rope import Angles
from ikpy_llm.engine.options import Options
from ikpy_llm.errors import ModelFileError, shown
from ikpy_llm.kernels.kv.types import kv_type

# How many rows a value has. Slots are pairs of row and expert; cells are all positions so far, this step's included.
TOKENS, OUTPUTS, SLOTS, CELLS = "tokens", "outputs", "slots", "cells"


PART = 16  # rows: panels of every target begin at multiples of it


@dataclass(eq=False, slots=True)
class Value:
    """What an op leaves for others: f32 [rows][width]. Kinds "acts", "acts_float" hold it ready for matrix products,
    "acts_one", "acts_one_float" row by row, "acts_heads", "acts_heads_float" head by head; "routes" is the choice of
    experts (kernels/moe/layout.py); "keys" and "values" are a cache of one layer for one step (attention/layout.py).
    """

    id: int
    width: int
    rows: str = TOKENS
    kind: str = "f32"

    def __repr__(self) -> str:
        return f"%{self.id}:{self.kind}[{self.rows},{self.width}]"


@dataclass(eq=False, slots=True)
class Op:
    """One step. `weights` maps a role ("w", "bias") to a tensor name; `label` says where in the model we are."""

    name: str
    inputs: tuple[Value, ...]
    output: Value | None
    weights: dict[str, str] = field(default_factory=dict)
    attrs: dict[str, object] = field(default_factory=dict)
    label: str = ""

    def __repr__(self) -> str:
        args = [*map(repr, self.inputs), *self.weights.values(), *(f"{k}={v}" for k, v in self.attrs.items())]
        return f"{self.output} = {self.name}({', '.join(args)})"


class Graph:
    """Records ops and claims tensors. `tensors` maps names to objects with `shape` (rows, columns) and `type_name`.

    A tensor that is missing or has another shape than the hyperparameters imply is a ModelFileError.
    """

    def __init__(
        self,
        file: str,
        tensors: dict[str, object],
        last_rows: bool = False,
        hidden: bool = False,
        token: bool = False,
        options: Options | None = None,
        n_ctx: int = 512,
    ):
        self.file, self.tensors = file, tensors
        self.last_rows = last_rows  # the head sees only the last rows of the step
        self.hidden = hidden  # the result is what the output matrix would be multiplied with
        self.token = token  # generation, a token at a time, and not prompts, of whatever steps
        self.options, self.n_ctx = options or Options(), n_ctx
        self.ops: list[Op] = []
        # tensor name -> use: "matrix", "rows" (look-up), "vector", "table", "source" (others are made of it), "unused"
        self.claimed: dict[str, str] = {}
        self.layer, self.n_layer, self._prefix, self._n_values = -1, 0, "", 0

    # ---- tensors
    def full(self, name: str) -> str:
        """The tensor's name in the file: the prefix of the current layer is put before."""
        return self._prefix + name

    def has(self, name: str) -> bool:
        return self.full(name) in self.tensors

    def rows(self, name: str) -> int:
        """Rows of a matrix, 0 without it."""
        shape = (0, 0, *self.tensors[self.full(name)].shape) if self.has(name) else (0, 0)
        return shape[-2]

    def claim(self, name: str, shape: tuple[int, ...], use: str) -> str:
        """The full name of a tensor, which must exist with exactly `shape` (rows, columns)."""
        full = self.full(name)
        tensor = self.tensors.get(full)
        if tensor is None:
            raise ModelFileError(f"{self.file}: tensor '{full}' of shape {list(shape)} is missing")
        have = tuple(tensor.shape)
        while len(have) > len(shape) and have[0] == 1:
            have = have[1:]
        while len(have) < len(shape) and shape[len(shape) - len(have) - 1] == 1:  # a matrix of one row
            have = (1, *have)
        if have != tuple(shape):
            raise ModelFileError(
                f"{self.file}: tensor '{full}' has shape {list(tensor.shape)}, the hyperparameters imply {list(shape)}"
            )
        if use in ("vector", "table") and tensor.type_name != "F32":
            raise ModelFileError(
                f"{self.file}: tensor '{full}' is {tensor.type_name}; only F32 is accepted for vectors"
            )
        if self.claimed.get(full, use) not in (use, "source"):
            use = "rows+matrix"  # tied embeddings: looked up by row and multiplied
        self.claimed[full] = use
        return full

    def derive(self, name: str, type_name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray], source: str):
        """A tensor that the file lacks, made when it is needed: `make()` gives its bytes. `source` says of what."""
        if not self.has(name):
            self.tensors[self.full(name)] = Derived(self.full(name), type_name, shape, make, source)

    def reshape(self, name: str, shape: tuple[int, ...]):
        """The tensor of this name, from now on, with its bytes read as another shape of as many elements."""
        full = self.full(name)
        tensor = copy.copy(self.tensors[full])
        object.__setattr__(tensor, "shape", shape)  # the file's own are frozen
        self.tensors[full] = tensor
        return tensor

    def join(self, name: str, n: int, shape: tuple[int, int]) -> None:
        """Where the file has n matrices `<name>.<i>.weight` in place of `<name>_exps.weight`: that tensor, joined, and
        their scales likewise.
        """
        if self.has(name + "_exps.weight") or not self.has(name + ".0.weight"):
            return
        names = [self.claim(f"{name}.{i}.weight", shape, "source") for i in range(n)]
        parts = [self.tensors[full] for full in names]
        for part in parts:
            if part.type_name != parts[0].type_name:
                raise ModelFileError(
                    f"{self.file}: tensor '{part.name}' is {part.type_name}, '{parts[0].name}' is "
                    f"{parts[0].type_name}; experts of a layer that are tensors of their own must be of one type"
                )

        def joined(parts: list) -> np.ndarray:
            out = np.concatenate([part.data for part in parts])
            for part in parts:
                part.release()
            return out

        source = f"{names[0]} and so on"
        self.derive(name + "_exps.weight", parts[0].type_name, (n, *shape), lambda: joined(parts), source)
        if self.has(name + ".0.scale"):
            scales = [self.tensors[self.claim(f"{name}.{i}.scale", (1,), "vector")] for i in range(n)]
            self.derive(name + "_exps.scale", "F32", (n,), lambda: joined(scales), source)
        for i in range(n):
            self._input_scale(f"{name}.{i}")

    def split(self, name: str, n: int, shape: tuple[int, int], into: tuple[str, ...]) -> None:
        """Where the file has n matrices `name` with the rows of several below each other: those, apart."""
        if not self.has(name + ".weight"):
            return
        both = self.tensors[self.claim(name + ".weight", (n, len(into) * shape[0], shape[1]), "source")]
        for i, part in enumerate(into):
            rows = lambda i=i: both.data.reshape(n, len(into), -1)[:, i]  # noqa: E731
            self.derive(part + ".weight", both.type_name, (n, *shape), rows, both.name)

    def check_all_claimed(self) -> list[str]:
        """Every tensor of the file must have been asked for: what we do not use we do not understand. Only biases of
        zeros change nothing whatever they are added to; their names.
        """
        left = sorted(set(self.tensors) - set(self.claimed))
        zeros = [name for name in left if name.endswith(".bias") and not _numbers(self.tensors[name]).any()]
        left = [name for name in left if name not in zeros]
        if left:
            names = ", ".join(shown(n) for n in left[:4])
            raise ModelFileError(f"{self.file}: {len(left)} tensors are not part of the model's definition: {names}")
        return zeros

    def freqs(self, n_rot: int, name: str = "rope_freqs.weight") -> str:
        """Name of the tensor by which the file divides each frequency of q's and k's rotation, "" without one."""
        if name not in self.tensors or not n_rot:
            return ""
        prefix, self._prefix = self._prefix, ""  # one tensor for all layers
        self.claim(name, (n_rot // 2,), "table")
        self._prefix = prefix
        return name

    # ---- ops
    def value(self, width: int, rows: str = TOKENS, kind: str = "f32") -> Value:
        self._n_values += 1
        return Value(self._n_values - 1, width, rows, kind)

    def emit(
        self, name: str, *inputs: Value, width: int = 0, rows: str = "", weights=None, label: str = "", **attrs
    ) -> Value:
        """Record an op; its output has `width` columns and the rows of its first input."""
        output = self.value(width, rows or (inputs[0].rows if inputs else TOKENS)) if width else None
        self.ops.append(Op(name, inputs, output, weights or {}, attrs, label or self.full(name)))
        return output

    def layers(self, n: int) -> Iterator[int]:
        """Numbers 0 .. n-1; names are `blk.<i>.` names meanwhile."""
        self.n_layer = n
        for i in range(n):
            self.layer, self._prefix = i, f"blk.{i}."
            yield i
        self.layer, self._prefix = -1, ""

    def embed(self, n_vocab: int, width: int, name: str = "token_embd", scale: float = 1.0) -> Value:
        w = self.claim(name + ".weight", (n_vocab, width), "rows")
        return self.emit("get_rows", width=width, weights={"w": w}, label=w, scale=scale)

    def norm(self, x: Value, name: str, eps: float) -> Value:
        w = self.claim(name + ".weight", (x.width,), "vector")
        return self.emit("rms_norm", x, width=x.width, weights={"w": w}, label=w, eps=eps)

    def head_norm(self, x: Value, name: str, n_head: int, eps: float) -> Value:
        """Each head of each row by itself; all heads share the weights."""
        w = self.claim(name + ".weight", (x.width // n_head,), "vector")
        return self.emit("head_norm", x, width=x.width, weights={"w": w}, label=w, n_head=n_head, eps=eps)

    def linear(
        self, x: Value, name: str, width: int, part: tuple[int, int] | None = None, apart: bool = False
    ) -> Value:
        """y = W x, times its scale (one number, for ternary and NVFP4 weights) plus the bias, where the file has them.

        part (first, all): `width` rows of W, which has `all`; apart: they become a matrix of their own, which they have
        to where a panel would have rows of two parts.
        """
        first, n_rows = part or (0, width)
        w = self.claim(name + ".weight", (n_rows, x.width), "source" if apart else "matrix")
        attrs = {"first": first, "n_rows": n_rows} if part else {}
        if apart:
            w, attrs = self._part(w, (n_rows, x.width), first, width, "matrix"), {}
        y = self.emit("linear", x, width=width, weights={"w": w}, label=w, **attrs)
        if self.has(name + ".scale"):
            factor = self.claim(name + ".scale", (1,), "vector")
            y = self.emit("scaled", y, width=width, rows=y.rows, weights={"factor": factor}, label=factor)
        self._input_scale(name)
        if self.has(name + ".bias"):
            bias = self.claim(name + ".bias", (n_rows,), "vector")
            if first:
                bias = self._part(bias, (n_rows,), first, width, "vector")
            y = self.emit("add_bias", y, width=width, weights={"bias": bias}, label=bias)
        return y

    def parts(self, x: Value, name: str, widths: Iterable[int]) -> list[Value]:
        """W x, cut into values of these widths."""
        ends = list(itertools.accumulate(widths, initial=0))
        apart = any(end % PART for end in ends[1:-1])
        return [self.linear(x, name, b - a, (a, ends[-1]), apart) for a, b in itertools.pairwise(ends)]

    def _part(self, full: str, shape: tuple[int, ...], first: int, n: int, use: str) -> str:
        """Rows of a tensor (full name) as a tensor of their own: its full name."""
        name = f"{full}[{first}:{first + n}]"
        if name not in self.tensors:
            self.tensors[name] = rows_of(self.tensors[full], shape, first, n, name)
        self.claimed[name] = use
        return name

    def experts(self, x: Value, routes: Value, name: str, n_expert: int, width: int) -> Value:
        """W_e x for every chosen expert e: x has the step's rows, or those of an earlier result of `experts`."""
        w = self.claim(name + ".weight", (n_expert, width, x.width), "matrix")
        y = self.emit("experts", x, routes, width=width, rows=SLOTS, weights={"w": w}, label=w)
        if self.has(name + ".scale"):
            factors = self.claim(name + ".scale", (n_expert,), "vector")
            weights = {"factors": factors}
            y = self.emit("scaled_slots", y, routes, width=width, rows=SLOTS, weights=weights, label=factors)
        self._input_scale(name)
        return y

    def _input_scale(self, name: str) -> None:
        """For engines that round activations to NVFP4: it says how, and is no factor of the product."""
        if self.has(name + ".input_scale"):
            self.claimed[self.full(name + ".input_scale")] = "unused"

    def route(self, logits: Value, n_used: int, bias: str = "", **how) -> Value:
        """The n_used experts of each row and their weights; `how`: gating, group_score, n_group, n_group_used, norm,
        scale, as in kernels/moe/route.route.
        """
        b = {"bias": self.claim(bias + ".bias", (logits.width,), "vector")} if bias else {}
        y = self.emit("route", logits, width=logits.width, weights=b, n_used=n_used, **how)
        y.kind = "routes"
        return y

    def combine(self, x: Value, routes: Value) -> Value:
        """The sum of the experts' results for each row, weighted."""
        return self.emit("combine", x, routes, width=x.width, rows=routes.rows)

    def add(self, x: Value, y: Value) -> Value:
        return self.emit("add", x, y, width=x.width)

    def gated(self, gate: Value, up: Value, act: str) -> Value:
        """act(gate) * up"""
        return self.emit("gated", gate, up, width=gate.width, act=act)

    def softcap(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap)"""
        return self.emit("softcap", x, width=x.width, rows=x.rows, cap=cap)

    def weighted(self, x: Value, gate: Value) -> Value:
        """sigmoid(gate) * x, with one number for each row."""
        return self.emit("weighted", x, gate, width=x.width)

    def rope(self, x: Value, n_head: int, style: str, angles: Angles) -> Value:
        """Rotate the first angles.n_rot columns of each head by the row's position."""
        if angles.n_rot == 0:
            return x
        return self.emit("rope", x, width=x.width, n_head=n_head, style=style, angles=angles)

    def per_head(self, x: Value, name: str, n_head: int, width: int, columns: int, y_head: int = 0) -> Value:
        """W_h x_h for every head: the first `columns` columns of each head of x give the first `width` of those y has
        (y_head columns each).
        """
        w = self.claim(name + ".weight", (n_head, width, columns), "matrix")
        y_head = y_head or width
        attrs = {"n_head": n_head, "columns": columns, "y_head": y_head, "n_out": width}
        return self.emit("per_head", x, width=n_head * y_head, weights={"w": w}, label=w, **attrs)

    def rope_part(self, x: Value, y: Value, n_head: int, style: str, angles: Angles) -> Value:
        """The last angles.n_rot columns of each head of x, turned, into the last of those of y, which may be x."""
        inputs = (x,) if x is y else (x, y)
        attrs = {"n_head": n_head, "style": style, "angles": angles}
        self.ops.append(Op("rope_part", inputs, y, {}, attrs, self.full("rope")))
        return y

    def latent_store(self, c: Value, pe: Value, name: str, n_head: int, eps: float, style: str, angles: Angles) -> None:
        """The normed c and the turned pe of each row into the cache of this layer."""
        w = self.claim(name + ".weight", (c.width,), "vector")
        attrs = {"n_head": n_head, "eps": eps, "style": style, "angles": angles, "layer": self.layer}
        self.emit("latent_store", c, pe, weights={"w": w}, **attrs)

    def latents(self, width: int, first: int, k_dim: int) -> Value:
        """Columns first .. first + width of the rows of k_dim that `latent_store` kept, of all positions."""
        return self.emit("latents", width=width, rows=CELLS, layer=self.layer, first=first, k_dim=k_dim)

    def expand(self, kv: Value, pe: Value, n_head: int, n_nope: int, v_dim: int, n_rot: int, keep: bool):
        """(keys, values) of n_head heads of kv, and of pe, the rotated columns of keys that they share. keep: they go
        into the cache of this layer; else they are for this step.
        """
        attrs, out = {"n_head": n_head, "n_nope": n_nope, "v_dim": v_dim, "n_rot": n_rot, "layer": self.layer}, []
        for name, width in ("keys", n_nope + n_rot), ("values", v_dim):
            columns = kv_type("f16").columns(width)
            out.append(self.emit(name, kv, pe, width=0 if keep else n_head * columns, **attrs))
            if out[-1]:
                out[-1].kind = name
        return out

    def attend_to(self, q: Value, k: Value, v: Value, y: Value | None, heads: tuple[int, int, int], v_dim: int, scale):
        """Attention of `heads` (first, number, of all) of q over keys and values of this step; y: where the others of
        the layer left theirs.
        """
        first, n_head, n_all = heads
        attrs = {"n_head": n_head, "n_head_kv": n_head, "scale": scale, "window": 0, "layer": self.layer}
        attrs |= {"latent": False, "cap": 0.0, "first_head": first, "n_head_all": n_all, "v_dim": v_dim}
        y = y or self.value(n_all * v_dim, q.rows)
        self.ops.append(Op("attend", (q, k, v), y, {}, attrs, self.full("attend")))
        return y

    def kv_store(self, k: Value, v: Value, n_head_kv: int, window: int = 0) -> None:
        self.emit("kv_store", k, v, n_head_kv=n_head_kv, window=window, layer=self.layer)

    def attend(
        self,
        q: Value,
        n_head: int,
        n_head_kv: int,
        v_dim: int,
        scale: float,
        window: int = 0,
        latent: bool = False,
        cap: float = 0.0,
    ) -> Value:
        """softmax(q k^T * scale) v over the cache of this layer, causal; window 0 = over all positions, else the last
        `window` up to the row's own. latent: the cache is that of `latent_store`. With a cap,
        scores s become cap * tanh(s / cap).
        """
        attrs = {"n_head": n_head, "n_head_kv": n_head_kv, "scale": scale, "window": window, "layer": self.layer}
        attrs |= {"latent": latent, "cap": cap, "first_head": 0, "n_head_all": n_head, "v_dim": v_dim}
        return self.emit("attend", q, width=n_head * v_dim, **attrs)

    def outputs(self, x: Value) -> Value:
        """Only the rows whose logits are wanted, where the program knows that those are fewer."""
        return self.emit("last_rows", x, width=x.width, rows=OUTPUTS) if self.last_rows else x


def _numbers(tensor) -> np.ndarray:
    """What of a vector is 0 only where its values are: of float types the bits without the sign, of others its bytes.

    Bits, as NumPy warns of the values of damaged files (signalling NaN).
    """
    kinds = {"F32": (np.uint32, 0x7FFFFFFF), "F16": (np.uint16, 0x7FFF), "BF16": (np.uint16, 0x7FFF)}
    word, bits = kinds.get(tensor.type_name, (np.uint8, 0xFF))
    return tensor.data.view(word) & bits
