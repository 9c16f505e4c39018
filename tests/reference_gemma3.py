"""The specification of models/gemma3.py in NumPy float64; what it shares with llama is in reference_llama.py."""

import numpy as np
from numpy_ops import gelu
from reference_llama import ReferenceLlama


class ReferenceGemma3(ReferenceLlama):
    """`logits(tokens)` -> float64 (n, vocabulary)."""

    def hidden(self, tokens) -> np.ndarray:
        m = self.meta
        x = self.w["token_embd.weight"][np.asarray(tokens)] * np.sqrt(m["embedding_length"])
        for i in range(m["block_count"]):
            name = f"blk.{i}."
            h = self.attention(i, self.norm(x, name + "attn_norm"))
            x = x + self.norm(h, name + "post_attention_norm")
            h = self.norm(x, name + "ffn_norm")
            h = gelu(self.linear(h, name + "ffn_gate")) * self.linear(h, name + "ffn_up")
            x = x + self.norm(self.linear(h, name + "ffn_down"), name + "post_ffw_norm")
        return self.norm(x, "output_norm")

    def is_local(self, i) -> bool:
        pattern = self.meta.get("attention.sliding_window_pattern", 6)
        local = pattern[i] if isinstance(pattern, list) else (i + 1) % pattern != 0
        return bool(local) and self.meta.get("attention.sliding_window", 0) > 0

    def turned(self, x, local):
        """Halves of a head turn; layers with a window by angles of their own, the others stretched by the factor."""
        n = x.shape[-1]
        base = self.meta.get("rope.freq_base_swa", 1e4) if local else self.meta["rope.freq_base"]
        factor = 1.0 if local else self.meta.get("rope.scaling.factor", 1.0)
        angle = np.arange(x.shape[1])[:, None] * base ** (-np.arange(0, n, 2) / n) / factor
        a, b = x[..., : n // 2], x[..., n // 2 :]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)

    def attention(self, i, x):
        n_head, n_head_kv, local = (
            self.meta["attention.head_count"],
            self.meta["attention.head_count_kv"],
            self.is_local(i),
        )
        q = self.norm(self.heads(self.linear(x, f"blk.{i}.attn_q"), n_head), f"blk.{i}.attn_q_norm")
        k = self.norm(self.heads(self.linear(x, f"blk.{i}.attn_k"), n_head_kv), f"blk.{i}.attn_k_norm")
        v = self.heads(self.linear(x, f"blk.{i}.attn_v"), n_head_kv)
        q, k = self.turned(q, local), self.turned(k, local)
        k, v = (t.astype(self.cache).astype(np.float64).repeat(n_head // n_head_kv, axis=0) for t in (k, v))
        width = self.meta["embedding_length"] / n_head if self.meta["block_count"] == 62 else q.shape[-1]
        scores = q @ k.swapaxes(1, 2) * self.meta.get("attention.scale", width**-0.5)
        far = np.arange(len(x))[:, None] - np.arange(len(x))  # how far back each key lies
        hidden = (far < 0) | (far >= self.meta["attention.sliding_window"]) if local else far < 0
        weights = np.exp(np.where(hidden, -np.inf, scores))
        y = weights / weights.sum(-1, keepdims=True) @ v
        return self.linear(y.swapaxes(0, 1).reshape(len(x), -1), f"blk.{i}.attn_output")
