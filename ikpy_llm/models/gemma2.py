"""Gemma 2: norms before and after each block, GeGLU, soft limits of scores and logits, windows in half the layers."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.models.blocks import attention, embed, ffn, head

WINDOW, ATTENTION_CAP, LOGIT_CAP = 4096, 50.0, 30.0  # where the file does not say
LAYERS_27B = 46  # of the one size whose q is not scaled by the size of its heads


def build(g: Graph, p: Params) -> Value:
    """Ops of one step, token ids to logits."""
    x = embed(g, p, scale=p.n_embd**0.5)
    width = p.divided("n_embd", "n_head") if p.n_layer == LAYERS_27B else p.head_dim
    how = {"rope": "neox", "scale": p.attention_scale or width**-0.5, "cap": p.attention_cap or ATTENTION_CAP}
    for i in g.layers(p.n_layer):
        h = attention(g, p, g.norm(x, "attn_norm", p.eps), window=0 if i % 2 else p.window or WINDOW, **how)
        x = g.add(x, g.norm(h, "post_attention_norm", p.eps))
        h = ffn(g, p, g.norm(x, "ffn_norm", p.eps), act="gelu")
        x = g.add(x, g.norm(h, "post_ffw_norm", p.eps))
    return head(g, p, x, p.logit_cap or LOGIT_CAP)
