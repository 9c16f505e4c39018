"""SmolLM3: as llama, but in every fourth layer q and k are not rotated."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks import attention, embed, ffn, head

PERIOD = 4


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p)
    for i in g.layers(p.n_layer):
        rope = "norm" if (i + 1) % PERIOD else ""
        x = g.add(x, attention(g, p, g.norm(x, "attn_norm", p.eps), rope=rope))
        x = g.add(x, ffn(g, p, g.norm(x, "ffn_norm", p.eps)))
    return head(g, p, x)
