"""Functions the architectures share: each takes the graph and the hyperparameters and leaves ops."""

from __future__ import annotations

import math

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import KEYS, Params
from ikpy_llm.engine.graph.rope import Angles, Yarn, growth

# Names of the activation functions in files, which follow HF transformers.
ACTS = {"silu": ("silu", "swish"), "gelu": ("gelu_pytorch_tanh", "gelu_tanh", "gelu_new"), "relu2": ("relu2",)}


def embed(g: Graph, p: Params, scale: float = 1.0) -> Value:
    """Rows of token_embd times `scale`; the vocabulary's size is the tensor's."""
    return g.embed(g.rows("token_embd.weight"), p.n_embd, scale=scale)


def angles(p: Params, freqs: str = "") -> Angles:
    """How q and k are rotated; ways to stretch the context that we do not know are refused."""
    p.only("rope_scaling", "none", "linear", "yarn")
    factor = p.rope_factor or p.rope_scale_linear or 1.0
    given = attn_factor(p)
    if p.rope_scaling != "yarn":
        return Angles(p.n_rot, p.rope_base, 1.0 if p.rope_scaling == "none" else factor, freqs, given or 1.0)
    mix = p.yarn_mix if p.yarn_mix >= 0 else 1.0
    scale = (given / growth(factor) if mix else given) if given else 1.0  # in place of yarn's own growth
    return Angles(p.n_rot, p.rope_base, factor, freqs, scale, Yarn(p.rope_n_ctx, p.yarn_fast, p.yarn_slow, mix))


def attn_factor(p: Params) -> float | None:
    """The factor of q and k that the file states, under either of its names; None where it states none."""
    given = [factor for factor in (p.rope_attn_factor, p.yarn_attn_factor) if factor is not None]
    return math.prod(given) if given else None


def attention(
    g: Graph,
    p: Params,
    x: Value,
    *,
    rope: str,
    turns: Angles | None = None,
    scale: float | None = None,
    window: int = 0,
    qk_norm: bool = False,
    cap: float = 0.0,
    sub_norm: str = "",
) -> Value:
    """Grouped-query attention with (normed and) rotated q and k over the KV cache; turns: other angles than the
    file's, scale: other than head_dim ** -0.5, rope "": nothing turns, sub_norm: norm before the last matrix.
    """
    p.check_attention()
    widths = {"attn_q": p.n_head * p.head_dim, "attn_k": p.n_head_kv * p.head_dim, "attn_v": p.n_head_kv * p.v_dim}
    if g.has("attn_qkv.weight"):
        q, k, v = g.parts(x, "attn_qkv", widths.values())
    else:
        q, k, v = (g.linear(x, name, width) for name, width in widths.items())
    if qk_norm:
        q = g.head_norm(q, "attn_q_norm", p.n_head, p.eps)
        k = g.head_norm(k, "attn_k_norm", p.n_head_kv, p.eps)
    turns = turns or angles(p, g.freqs(p.n_rot))
    if rope:
        q, k = g.rope(q, p.n_head, rope, turns), g.rope(k, p.n_head_kv, rope, turns)
    g.kv_store(k, v, p.n_head_kv, window)
    y = g.attend(q, p.n_head, p.n_head_kv, p.v_dim, scale or p.head_dim**-0.5, window, cap=cap)
    return g.linear(g.norm(y, sub_norm, p.eps) if sub_norm else y, "attn_output", p.n_embd)


def check_act(p: Params, act: str) -> None:
    """Refuse a file that names another activation function than the architecture's."""
    if p.act and p.act not in ACTS[act]:
        raise p.refused(KEYS["act"].key, " or ".join(ACTS[act]))


def ffn(
    g: Graph, p: Params, x: Value, *, act: str = "silu", n_ff: int = 0, suffix: str = "", sub_norm: str = ""
) -> Value:
    """W_down (act(W_gate x) * W_up x); suffix: `_shexp` for the expert that all rows share, n_ff: another width,
    sub_norm: norm before W_down. A file without ffn_gate has it in the first half of ffn_up.
    """
    check_act(p, act)
    width, names = n_ff or p.n_ff, ("ffn_gate" + suffix, "ffn_up" + suffix)
    if not g.has(names[0] + ".weight") and g.rows(names[1] + ".weight") == 2 * width:
        gate, up = g.parts(x, names[1], (width, width))
    else:
        gate, up = (g.linear(x, name, width) for name in names)
    y = g.gated(gate, up, act)
    return g.linear(g.norm(y, sub_norm, p.eps) if sub_norm else y, "ffn_down" + suffix, p.n_embd)


def moe(g: Graph, p: Params, x: Value, *, norm: bool = False, sigmoid: bool = False, n_ff: int = 0) -> Value:
    """The weighted sum of the chosen experts' W_down (silu(W_gate x) * W_up x); see Graph.route for the choice.

    norm: are their weights scaled to a sum of one where the file does not say? sigmoid: the file may ask for it in
    place of softmax, and have a bias for the choice, as DeepSeek-V3. A bias means sigmoid where the file does not say,
    and groups of experts score then by their two best, else by the best.
    """
    p.check_experts()
    p.only("expert_gating", *((0, 1, 2) if sigmoid else (0, 1)))
    check_act(p, "silu")
    width, bias = n_ff or p.n_ff_expert, "exp_probs_b" if sigmoid and g.has("exp_probs_b.bias") else ""
    how = {"gating": "sigmoid" if p.expert_gating == 2 or (bias and not p.expert_gating) else "softmax"}
    how |= {"norm": norm if p.expert_norm is None else p.expert_norm, "scale": p.expert_scale or 1.0}
    how |= {"group_score": "top2" if bias else "max"}
    how |= {"n_group": p.n_expert_group, "n_group_used": p.n_expert_group_used}
    routes = g.route(g.linear(x, "ffn_gate_inp", p.n_expert), p.n_expert_used, bias, **how)
    for name, shape in ("gate", (width, p.n_embd)), ("up", (width, p.n_embd)), ("down", (p.n_embd, width)):
        g.join("ffn_" + name, p.n_expert, shape)  # old files of Mixtral
    g.split("ffn_gate_up_exps", p.n_expert, (width, p.n_embd), ("ffn_gate_exps", "ffn_up_exps"))
    gate = g.experts(x, routes, "ffn_gate_exps", p.n_expert, width)
    up = g.experts(x, routes, "ffn_up_exps", p.n_expert, width)
    return g.combine(g.experts(g.gated(gate, up, "silu"), routes, "ffn_down_exps", p.n_expert, p.n_embd), routes)


def head(g: Graph, p: Params, x: Value, cap: float = 0.0) -> Value:
    """Logits (or what comes before the output matrix); a file without an output matrix uses the embedding (tied).

    cap: logits l become cap * tanh(l / cap).
    """
    x = g.norm(g.outputs(x), "output_norm", p.eps)
    if g.hidden:
        return x
    logits = g.linear(x, "output" if g.has("output.weight") else "token_embd", g.rows("token_embd.weight"))
    return g.softcap(logits, cap) if cap else logits
