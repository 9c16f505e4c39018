"""The specifications of gemma2, glm4, smollm3, phi3 and bitnet in NumPy float64, as differences from llama."""

import numpy as np
from numpy_ops import gelu
from reference_llama import ReferenceLlama


def capped(x, cap):
    return cap * np.tanh(x / cap) if cap else x


class Relative(ReferenceLlama):
    """Hooks of the attention that llama has not; see the architectures below."""

    neox, post_norms, scale, cap = False, False, 1.0, 0.0

    def hidden(self, tokens) -> np.ndarray:
        x = self.w["token_embd.weight"][np.asarray(tokens)] * self.scale
        for i in range(self.meta["block_count"]):
            name = f"blk.{i}."
            h = self.attention(i, self.norm(x, name + "attn_norm"))
            x = x + (self.norm(h, name + "post_attention_norm") if self.post_norms else h)
            h = self.ffn(i, self.norm(x, name + "ffn_norm"))
            x = x + (self.norm(h, name + "post_ffw_norm") if self.post_norms else h)
        return self.norm(x, "output_norm")

    def qkv(self, i, x):
        return [self.linear(x, f"blk.{i}.attn_{name}") for name in "qkv"]

    def window(self, i):
        return 0

    def turned(self, i, x):
        """Pairs of the first columns of each head."""
        n = self.meta.get("rope.dimension_count", x.shape[-1])
        frequency = self.meta["rope.freq_base"] ** (-np.arange(0, n, 2) / n) / self.divisors(x.shape[1])
        angle = np.arange(x.shape[1])[:, None] * frequency
        a, b = (slice(0, n // 2), slice(n // 2, n)) if self.neox else (slice(0, n, 2), slice(1, n, 2))
        out = x.copy()
        out[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)
        out[..., b] = x[..., a] * np.sin(angle) + x[..., b] * np.cos(angle)
        out[..., :n] *= self.meta.get("rope.scaling.attn_factor", 1.0)
        return out

    def divisors(self, n_ctx):
        return 1.0

    def attention(self, i, x):
        n_head, n_head_kv = self.meta["attention.head_count"], self.meta["attention.head_count_kv"]
        q, k, v = self.qkv(i, x)
        q, k, v = self.heads(q, n_head), self.heads(k, n_head_kv), self.heads(v, n_head_kv)
        q, k = self.turned(i, q), self.turned(i, k)
        k, v = (t.astype(self.cache).astype(np.float64).repeat(n_head // n_head_kv, axis=0) for t in (k, v))
        scores = capped(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), self.cap)
        far, window = np.arange(len(x))[:, None] - np.arange(len(x)), self.window(i) or len(x)
        weights = np.exp(np.where((far < 0) | (far >= window), -np.inf, scores))
        y = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)
        return self.linear(self.before_output(i, y), f"blk.{i}.attn_output")

    def before_output(self, i, y):
        return y


class Gemma2(Relative):
    neox, post_norms = True, True

    def __init__(self, path, cache=np.float64):
        super().__init__(path, cache)
        self.scale, self.cap = self.meta["embedding_length"] ** 0.5, self.meta.get("attn_logit_softcapping", 50.0)

    def logits(self, tokens):
        return capped(self.linear(self.hidden(tokens), "token_embd"), self.meta.get("final_logit_softcapping", 30.0))

    def window(self, i):
        return 0 if i % 2 else self.meta.get("attention.sliding_window", 4096)

    def ffn(self, i, x):
        h = gelu(self.linear(x, f"blk.{i}.ffn_gate")) * self.linear(x, f"blk.{i}.ffn_up")
        return self.linear(h, f"blk.{i}.ffn_down")


class Merged(Relative):
    """Gate and up in one matrix."""

    def ffn(self, i, x):
        gate, up = np.split(self.linear(x, f"blk.{i}.ffn_up"), 2, axis=1)
        return self.linear(gate / (1 + np.exp(-gate)) * up, f"blk.{i}.ffn_down")


class Glm4(Merged):
    post_norms = True


class Phi3(Merged):
    neox = True

    def qkv(self, i, x):
        m = self.meta
        kv = m["attention.head_count_kv"] * m["attention.key_length"]
        q = m["attention.head_count"] * m["attention.key_length"]
        return np.split(self.linear(x, f"blk.{i}.attn_qkv"), [q, q + kv], axis=1)

    def window(self, i):
        return self.meta.get("attention.sliding_window", 0)

    def divisors(self, n_ctx):
        long = self.n_ctx > self.meta.get("rope.scaling.original_context_length", 1 << 30)
        return self.w.get(f"rope_factors_{'long' if long else 'short'}.weight", 1.0)


class Smollm3(Relative):
    def turned(self, i, x):
        return super().turned(i, x) if (i + 1) % 4 else x


class Bitnet(Relative):
    neox = True

    def before_output(self, i, y):
        return self.norm(y, f"blk.{i}.attn_sub_norm")

    def ffn(self, i, x):
        gate, up = self.linear(x, f"blk.{i}.ffn_gate"), self.linear(x, f"blk.{i}.ffn_up")
        act = gate / (1 + np.exp(-gate)) if self.architecture == "bitnet" else np.maximum(gate, 0) ** 2
        return self.linear(self.norm(act * up, f"blk.{i}.ffn_sub_norm"), f"blk.{i}.ffn_down")


REFERENCES = {
    "gemma2": Gemma2,
    "glm4": Glm4,
    "phi3": Phi3,
    "smollm3": Smollm3,
    "bitnet": Bitnet,
    "bitnet-25": Bitnet,
    "bitnet-b1.58": Bitnet,
}
