"""The specification of models/llama.py and qwen2.py: the whole forward pass in NumPy float64, from a file's dequantized
weights.
"""

import numpy as np
from gguf import GGUFReader, dequantize


class ReferenceLlama:
    """`logits(tokens)` -> float64 (n, vocabulary). The gguf package reads the file: nothing is shared with ikpy."""

    def __init__(self, path, cache=np.float64, eight_bits=()):
        self.cache = cache  # the precision in which keys and values are kept
        self.eight_bits = eight_bits  # names of types whose products see 8-bit activations, a scale per 32 columns
        self.read(path)

    def read(self, path):
        """Set architecture, meta (keys without it), w (weights) and types, by tensor name."""
        reader = GGUFReader(path)
        self.w = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
        self.types = {t.name: t.tensor_type.name for t in reader.tensors}
        self.architecture = reader.fields["general.architecture"].contents()
        prefix = self.architecture + "."
        self.meta = {k.removeprefix(prefix): f.contents() for k, f in reader.fields.items() if k.startswith(prefix)}

    def logits(self, tokens) -> np.ndarray:
        return self.linear(self.hidden(tokens), "output" if "output.weight" in self.w else "token_embd")

    def hidden(self, tokens) -> np.ndarray:
        """float64 (n, columns): what the last norm gives."""
        m, w = self.meta, self.w
        x = w["token_embd.weight"][np.asarray(tokens)]
        for i in range(m["block_count"]):
            x = x + self.attention(i, self.norm(x, f"blk.{i}.attn_norm"))
            x = x + self.ffn(i, self.norm(x, f"blk.{i}.ffn_norm"))
        return self.norm(x, "output_norm")

    def ffn(self, i, x):
        gate, up = self.linear(x, f"blk.{i}.ffn_gate"), self.linear(x, f"blk.{i}.ffn_up")
        return self.linear(gate / (1 + np.exp(-gate)) * up, f"blk.{i}.ffn_down")

    def norm(self, x, name):
        eps = self.meta["attention.layer_norm_rms_epsilon"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * self.w[name + ".weight"]

    def linear(self, x, name):
        if self.types[name + ".weight"] in self.eight_bits:
            blocks = x.reshape(len(x), -1, 32)
            d = abs(blocks).max(-1, keepdims=True) / 127 + 1e-30
            x = (np.rint(blocks / d) * d).reshape(x.shape)
        return x @ self.w[name + ".weight"].T * self.w.get(name + ".scale", 1.0) + self.w.get(name + ".bias", 0.0)

    def heads(self, x, n):
        return x.reshape(len(x), n, -1).swapaxes(0, 1)  # (heads, tokens, columns)

    def rope(self, x):
        """Pairs of columns (neighbours; qwen: i, i + n/2) turn by position * base^(-2i/n), over the file's factors."""
        n_rot = self.meta.get("rope.dimension_count", x.shape[-1])
        frequency = self.meta.get("rope.freq_base", 10000.0) ** (-np.arange(0, n_rot, 2) / n_rot)
        frequency = frequency / self.w.get("rope_freqs.weight", 1.0) / self.meta.get("rope.scaling.factor", 1.0)
        angle = np.arange(x.shape[1])[:, None] * frequency
        a, b = slice(0, n_rot, 2), slice(1, n_rot, 2)
        if self.architecture.startswith("qwen"):
            a, b = slice(0, n_rot // 2), slice(n_rot // 2, n_rot)
        out = x.copy()
        out[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)
        out[..., b] = x[..., a] * np.sin(angle) + x[..., b] * np.cos(angle)
        return out

    def attention(self, i, x):
        n_head = self.meta["attention.head_count"]
        n_head_kv = self.meta.get("attention.head_count_kv", n_head)
        q, k = (self.heads(self.linear(x, f"blk.{i}.attn_{name}"), n) for name, n in (("q", n_head), ("k", n_head_kv)))
        if self.architecture.startswith("qwen3"):
            q, k = self.norm(q, f"blk.{i}.attn_q_norm"), self.norm(k, f"blk.{i}.attn_k_norm")
        q, k = self.rope(q), self.rope(k)
        v = self.heads(self.linear(x, f"blk.{i}.attn_v"), n_head_kv)
        k, v = (t.astype(self.cache).astype(np.float64).repeat(n_head // n_head_kv, axis=0) for t in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = weights / weights.sum(-1, keepdims=True) @ v
        return self.linear(y.swapaxes(0, 1).reshape(len(x), -1), f"blk.{i}.attn_output")
