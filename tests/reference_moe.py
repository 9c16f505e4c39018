"""The specification of layers with experts (qwen3moe, qwen2moe, llama with experts) in NumPy float64."""

import numpy as np
from reference_llama import ReferenceLlama


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def choose(
    logits, n_used, *, gating="softmax", bias=None, n_group=1, n_group_used=1, norm=False, scale=1.0, ser=(0, 0)
):
    """[(experts, weights)] of each row. Groups score by their best expert, with a bias by the two best."""
    p = {"softmax": softmax, "sigmoid": sigmoid}[gating](logits)
    out = []
    for row in p:
        score = row + (0 if bias is None else bias)
        if n_group > 1:
            groups = np.sort(score.reshape(n_group, -1))
            of_group = groups[:, -1] if bias is None else groups[:, -2:].sum(1)
            kept = np.argsort(-of_group)[:n_group_used]
            score = np.where(np.isin(np.arange(len(row)) // groups.shape[1], kept), score, -np.inf)
        ids = np.argsort(-score, kind="stable")[:n_used]
        if ser[0] > 0 and ser[1] > 0:
            ids = [e for j, e in enumerate(ids) if j < ser[0] or score[e] > ser[1] * score[ids[0]]]
        weights = row[ids] / (row[ids].sum() if norm else 1)
        out.append((ids, weights * scale))
    return out


def margin(score, n_used, n_group=1, n_group_used=1):
    """How far a row's scores, float64 (experts,), are from another choice of groups (by the two best) or experts."""
    found = []
    if n_group_used < n_group:
        groups = np.sort(score.reshape(n_group, -1))[:, -2:].sum(1)
        best = np.argsort(-groups)
        found.append(groups[best[n_group_used - 1]] - groups[best[n_group_used]])
        score = score.reshape(n_group, -1)[best[:n_group_used]].reshape(-1)
    best = -np.sort(-score)
    return min([*found, best[n_used - 1] - best[n_used]])


class ReferenceMoE(ReferenceLlama):
    """`logits(tokens)` -> float64 (n, vocabulary). `ser`: (least experts, share of the best), as -ser."""

    ser = (0, 0)

    def ffn(self, i, x):
        if f"blk.{i}.ffn_gate_inp.weight" not in self.w:
            return super().ffn(i, x)
        name = f"blk.{i}.ffn_"
        gate, up, down = (
            self.w[f"{name}{part}_exps.weight"] * self.w.get(f"{name}{part}_exps.scale", np.ones(1))[:, None, None]
            for part in ("gate", "up", "down")
        )
        y = np.zeros_like(x)
        for row, (ids, weights) in enumerate(self.routes(i, self.linear(x, name + "gate_inp"))):
            for e, weight in zip(ids, weights, strict=True):
                y[row] += weight * (down[e] @ (silu(gate[e] @ x[row]) * (up[e] @ x[row])))
        if name + "gate_shexp.weight" in self.w:
            h = silu(self.linear(x, name + "gate_shexp")) * self.linear(x, name + "up_shexp")
            shared = self.linear(h, name + "down_shexp")
            if self.architecture == "qwen2moe":
                shared = shared * sigmoid(x @ self.w[name + "gate_inp_shexp.weight"].reshape(-1))[:, None]
            y = y + shared
        return y

    def routes(self, i, logits):
        norm = self.meta.get("expert_weights_norm", self.architecture != "qwen2moe")
        scale = self.meta.get("expert_weights_scale", 0.0) or 1.0
        return choose(logits, self.meta["expert_used_count"], norm=norm, scale=scale, ser=self.ser)
