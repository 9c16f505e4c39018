"""Feed-forward of chosen experts."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks.dense import check_act


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
