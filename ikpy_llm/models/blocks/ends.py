"""Where a model begins and ends: embedding, and output norm with output matrix."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params


def embed(g: Graph, p: Params, scale: float = 1.0) -> Value:
    """Rows of token_embd times `scale`; the vocabulary's size is the tensor's."""
    return g.embed(g.rows("token_embd.weight"), p.n_embd, scale=scale)


def head(g: Graph, p: Params, x: Value, cap: float = 0.0) -> Value:
    """Logits (or what comes before the output matrix); a file without an output matrix uses the embedding (tied).

    cap: logits l become cap * tanh(l / cap).
    """
    x = g.norm(g.outputs(x), "output_norm", p.eps)
    if g.hidden:
        return x
    logits = g.linear(x, "output" if g.has("output.weight") else "token_embd", g.rows("token_embd.weight"))
    return g.softcap(logits, cap) if cap else logits
