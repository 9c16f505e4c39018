"""Feed-forward with a gate."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import KEYS, Params

# Names of the activation functions in files, which follow HF transformers.
ACTS = {"silu": ("silu", "swish"), "gelu": ("gelu_pytorch_tanh", "gelu_tanh", "gelu_new"), "relu2": ("relu2",)}


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
