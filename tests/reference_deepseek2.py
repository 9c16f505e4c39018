"""The specification of models/deepseek2.py and blocks/mla.py in NumPy float64: heads have keys and values apart."""

import numpy as np
from reference_moe import ReferenceMoE, choose


class ReferenceDeepseek2(ReferenceMoE):
    """`logits(tokens)` -> float64 (n, vocabulary)."""

    def kept(self, rows):
        """Latents as a cache gives them back."""
        return rows

    def routes(self, i, logits):
        m = self.meta
        how = {
            "norm": m.get("expert_weights_norm", False),
            "scale": m.get("expert_weights_scale", 1.0),
            "ser": self.ser,
        }
        how |= {"n_group": m.get("expert_group_count", 1), "n_group_used": m.get("expert_group_used_count", 1)}
        bias = self.w.get(f"blk.{i}.exp_probs_b.bias")
        gating = {1: "softmax", 2: "sigmoid"}.get(m.get("expert_gating_func"), "softmax" if bias is None else "sigmoid")
        return choose(logits, m["expert_used_count"], gating=gating, bias=bias, **how)

    def turned(self, x):
        """Neighbouring columns turn; yarn stretches slow pairs by the factor, and all grow by the file's factor or by
        yarn's own, or not at all where the scale of q k^T grows (mscale and mscale_all_dim are equal).
        """
        m, n = self.meta, x.shape[-1]
        base, factor = m.get("rope.freq_base", 1e4), m.get("rope.scaling.factor", 1.0)
        frequency = base ** (-np.arange(0, n, 2) / n)
        part, grown = np.zeros(n // 2), 1.0  # part: of each pair that is not stretched
        if m.get("rope.scaling.type") == "yarn":
            n_ctx = m["rope.scaling.original_context_length"]
            low, high = (n * np.log(n_ctx / (turns * 2 * np.pi)) / (2 * np.log(base)) for turns in (32, 1))
            low, high = max(0, np.floor(low)), min(n - 1, np.ceil(high))
            part = 1 - np.clip((np.arange(n // 2) - low) / max(0.001, high - low), 0, 1)
            grown = 1.0 if m.get("rope.scaling.yarn_log_multiplier") else 1 + 0.1 * np.log(factor)
            grown = m.get("rope.scaling.yarn_attn_factor", grown)
        angle = np.arange(x.shape[-2])[:, None] * frequency * (part + (1 - part) / factor)
        out = np.empty_like(x)
        out[..., ::2] = x[..., ::2] * np.cos(angle) - x[..., 1::2] * np.sin(angle)
        out[..., 1::2] = x[..., ::2] * np.sin(angle) + x[..., 1::2] * np.cos(angle)
        return out * grown

    def attention(self, i, x):
        m, name = self.meta, f"blk.{i}.attn_"
        n_head, rank, n_rot = m["attention.head_count"], m["attention.kv_lora_rank"], m["rope.dimension_count"]
        k_dim = m.get("attention.key_length_mla", m["attention.key_length"])
        v_dim = m.get("attention.value_length_mla", m["attention.value_length"])
        nope = k_dim - n_rot
        if m.get("attention.q_lora_rank", 0):
            q = self.linear(self.norm(self.linear(x, name + "q_a"), name + "q_a_norm"), name + "q_b")
        else:
            q = self.linear(x, name + "q")
        kv = self.linear(x, name + "kv_a_mqa")
        rows = self.kept(np.concatenate([self.norm(kv[:, :rank], name + "kv_a_norm"), self.turned(kv[:, rank:])], 1))
        c, pe = rows[:, :rank], rows[:, rank:]
        if name + "kv_b.weight" in self.w:
            both = self.w[name + "kv_b.weight"].reshape(n_head, nope + v_dim, rank)
            k_b, v_b = both[:, :nope], both[:, nope:]
        else:
            k_b, v_b = self.w[name + "k_b.weight"].swapaxes(1, 2), self.w[name + "v_b.weight"]
        q = self.heads(q, n_head)
        q = np.concatenate([q[..., :nope], self.turned(q[..., nope:])], -1)
        k = np.concatenate([np.einsum("hkr,nr->hnk", k_b, c), np.broadcast_to(pe, (n_head, *pe.shape))], -1)
        v = np.einsum("hvr,nr->hnv", v_b, c)
        factor = m.get("rope.scaling.factor", 1.0) if m.get("rope.scaling.type") == "yarn" else 1.0
        grown = 1 + m.get("rope.scaling.yarn_log_multiplier", 0.0) * np.log(factor)
        scores = q @ k.swapaxes(1, 2) * grown**2 / np.sqrt(k_dim)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = weights / weights.sum(-1, keepdims=True) @ v
        return self.linear(y.swapaxes(0, 1).reshape(len(x), -1), name + "output")
