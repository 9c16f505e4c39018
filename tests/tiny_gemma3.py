"""Writes random gemma3 models small enough to run in milliseconds."""

import gguf_writer
import tiny_llama
from tiny_llama import N_VOCAB

WINDOW = 16


def meta(head_dim=32, n_layer=7, n_head=4, n_head_kv=2, **more) -> dict:
    """Metadata; `more` are keys after `gemma3.`, with __ for the point, None takes one out."""
    more = {"attention__sliding_window": WINDOW, "rope__freq_base": 1e6, "context_length": 1024} | more
    sizes = {"head_dim": head_dim, "n_layer": n_layer, "n_head": n_head, "n_head_kv": n_head_kv}
    return tiny_llama.meta(architecture="gemma3", **sizes, **more)


def shapes(m: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor."""
    out = tiny_llama.shapes(m, tied=True)
    for i in range(m["gemma3.block_count"]):
        for name in ("attn_q_norm", "attn_k_norm"):
            out[f"blk.{i}.{name}.weight"] = (m["gemma3.attention.key_length"],)
        for name in ("post_attention_norm", "post_ffw_norm"):
            out[f"blk.{i}.{name}.weight"] = (m["gemma3.embedding_length"],)
    return out


def write(path, types=("F32",), seed=0, **more):
    """Write a model to `path`; `types` of the matrices in turn."""
    m = meta(**more)
    return gguf_writer.write(path, m, tiny_llama.random(shapes(m), types, seed))


__all__ = ["N_VOCAB", "WINDOW", "meta", "shapes", "write"]
