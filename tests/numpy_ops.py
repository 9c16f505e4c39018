"""What every op of the engine means, in NumPy float64: runs an op list, fused or not, on a sequence from position 0."""

import numpy as np
from reference_moe import choose

from ikpy_llm.engine.graph import rope


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTS = {"silu": silu, "gelu": gelu}


def norm(x, w, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w


class NumpyOps:
    """`run(ops, tokens)` -> value of the last op. `weights` maps tensor names to float64 arrays."""

    def __init__(self, weights):
        self.w, self.cache = weights, {}

    def run(self, ops, tokens):
        self.tokens, values = np.asarray(tokens), {}
        for op in ops:
            weights = {role: self.w[name] for role, name in op.weights.items()}
            y = getattr(self, op.name)(*[values[v] for v in op.inputs], **op.attrs, **weights)
            if op.output is not None:
                assert op.output.kind == "routes" or y.shape == (len(y), op.output.width), op
                values[op.output] = y
        return y

    def get_rows(self, w, scale):
        return w[self.tokens] * scale

    def rms_norm(self, x, w, eps):
        return norm(x, w, eps)

    def norm_add(self, x, y, w, eps):
        return y + norm(x, w, eps)

    def head_norm(self, x, w, n_head, eps):
        return norm(x.reshape(len(x), n_head, -1), w, eps).reshape(x.shape)

    def add(self, x, y):
        return x + y

    def add_bias(self, x, bias):
        return x + bias

    def scaled(self, x, factor):
        return x * factor

    def gated(self, gate, up, act):
        return ACTS[act](gate) * up

    def weighted(self, x, gate):
        return x / (1 + np.exp(-gate))

    def route(self, logits, bias=None, n_used=1, group_score="", **how):
        """(experts, weights), each (rows, n_used). Grouped rows are here in the order of rows and choices."""
        ids, weights = zip(*choose(logits, n_used, bias=bias, **how), strict=True)
        return np.array(ids), np.array(weights)

    def gather(self, x, routes):
        return x.repeat(routes[0].shape[1], axis=0)

    def quantize_slots(self, x, *rest, **how):
        return self.quantize(x, *rest[:-1], **how)

    def matmul_slots(self, x, routes, w):
        return np.einsum("ik,irk->ir", x, w[routes[0].ravel()])

    def scaled_slots(self, x, routes, factors):
        return x * factors[routes[0].ravel()][:, None]

    def combine(self, x, routes, residual=0.0):
        ids, weights = routes
        return np.einsum("ij,ijk->ik", weights, x.reshape(*ids.shape, -1)) + residual

    def last_rows(self, x):
        return x[-1:]

    def quantize(self, x, up=None, source="plain", w=None, eps=0.0, act="", flavour=None):
        return {"plain": lambda: x, "rms_norm": lambda: norm(x, w, eps), "gated": lambda: ACTS[act](x) * up}[source]()

    def matmul(self, x, residual=0.0, w=None, bias=0.0):
        return x @ np.atleast_2d(w).T + bias + residual

    def rope(self, x, n_head, style, angles, w=None, eps=0.0):
        x = x if w is None else self.head_norm(x, w, n_head, eps)
        freqs = self.w[angles.freqs] if angles.freqs else None
        cos, sin = np.moveaxis(rope.table(angles, len(x), freqs).astype(np.float64)[:, None], -1, 0)
        heads, n = x.reshape(len(x), n_head, -1).copy(), angles.n_rot
        first, second = (slice(0, n, 2), slice(1, n, 2)) if style == "norm" else (slice(0, n // 2), slice(n // 2, n))
        a, b = heads[..., first].copy(), heads[..., second].copy()
        heads[..., first], heads[..., second] = a * cos - b * sin, a * sin + b * cos
        return heads.reshape(x.shape)

    def kv_store(self, k, v, n_head_kv, layer, window, **rotation):
        k = self.rope(k, **rotation) if rotation else k
        self.cache[layer] = [t.reshape(len(t), n_head_kv, -1).swapaxes(0, 1) for t in (k, v)]

    def attend(self, q, n_head, n_head_kv, scale, window, layer, **_):
        k, v = (np.repeat(t, n_head // n_head_kv, axis=0) for t in self.cache[layer])
        q = q.reshape(len(q), n_head, -1).swapaxes(0, 1)
        visible = np.tri(q.shape[1], dtype=bool)
        visible &= ~np.tri(q.shape[1], k=-window, dtype=bool) if window else True
        scores = np.where(visible, q @ k.swapaxes(1, 2) * scale, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(q.shape[1], -1)
