"""Functions the architectures share: each takes the graph and the hyperparameters and leaves ops."""

from __future__ import annotations

import itertools

from ikpy_llm.engine.graph import Graph, Value
from ikpy_llm.engine.params import Params
from ikpy_llm.engine.rope import Angles, Yarn


def embed(g: Graph, p: Params, scale: float = 1.0) -> Value:
    """Rows of token_embd times `scale`; the vocabulary's size is the tensor's."""
    tensor = g.tensors.get("token_embd.weight")
    n_vocab = tensor.shape[0] if tensor is not None and len(tensor.shape) == 2 else 0
    return g.embed(n_vocab, p.n_embd, scale=scale)


def angles(p: Params, freqs: str = "") -> Angles:
    """How q and k are rotated; ways to stretch the context that we do not know are refused."""
    p.only("rope_scaling", "none", "linear", "yarn")
    factor = p.rope_factor or p.rope_scale_linear or 1.0
    scale = p.rope_attn_factor * p.yarn_attn_factor
    if p.rope_scaling != "yarn":
        return Angles(p.n_rot, p.rope_base, 1.0 if p.rope_scaling == "none" else factor, freqs, scale)
    return Angles(p.n_rot, p.rope_base, factor, freqs, scale, Yarn(p.rope_n_ctx, p.yarn_fast, p.yarn_slow, p.yarn_mix))


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
        ends = list(itertools.accumulate(widths.values(), initial=0))
        q, k, v = (g.linear(x, "attn_qkv", b - a, (a, ends[-1])) for a, b in itertools.pairwise(ends))
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


def ffn(
    g: Graph, p: Params, x: Value, *, act: str = "silu", n_ff: int = 0, suffix: str = "", sub_norm: str = ""
) -> Value:
    """W_down (act(W_gate x) * W_up x); suffix: `_shexp` for the expert that all rows share, n_ff: another width,
    sub_norm: norm before W_down. A file without ffn_gate has it in the first half of ffn_up.
    """
    width, names = n_ff or p.n_ff, ("ffn_gate" + suffix, "ffn_up" + suffix)
    if not g.has(names[0] + ".weight") and g.rows(names[1] + ".weight") == 2 * width:
        gate, up = (g.linear(x, names[1], width, (i * width, 2 * width)) for i in range(2))
    else:
        gate, up = (g.linear(x, name, width) for name in names)
    y = g.gated(gate, up, act)
    return g.linear(g.norm(y, sub_norm, p.eps) if sub_norm else y, "ffn_down" + suffix, p.n_embd)


def moe(
    g: Graph,
    p: Params,
    x: Value,
    *,
    norm: bool,
    gating: str = "softmax",
    scale: float = 1.0,
    bias: str = "",
    n_ff: int = 0,
) -> Value:
    """The weighted sum of the chosen experts' W_down (silu(W_gate x) * W_up x); see Graph.route for the choice.

    Where experts are chosen with a bias, groups of experts score by their two best (DeepSeek-V3), else by the best.
    """
    p.check_experts()
    width = n_ff or p.n_ff_expert
    how = {"gating": gating, "norm": norm, "scale": scale, "group_score": "top2" if bias else "max"}
    how |= {"n_group": p.n_expert_group, "n_group_used": p.n_expert_group_used}
    routes = g.route(g.linear(x, "ffn_gate_inp", p.n_expert), p.n_expert_used, bias, **how)
    for name, shape in ("gate", (width, p.n_embd)), ("up", (width, p.n_embd)), ("down", (p.n_embd, width)):
        g.join("ffn_" + name, p.n_expert, shape)  # old files of Mixtral
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
    n_vocab = g.tensors["token_embd.weight"].shape[0]
    logits = g.linear(x, "output" if g.has("output.weight") else "token_embd", n_vocab)
    return g.softcap(logits, cap) if cap else logits
