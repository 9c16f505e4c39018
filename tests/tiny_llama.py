"""Writes random llama models small enough to run in milliseconds, with every option the architecture has."""

from types import SimpleNamespace

import gguf_writer
import numpy as np
from gguf import GGMLQuantizationType, quantize

N_VOCAB = 70


def meta(n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96, n_layer=2, architecture="llama", **more) -> dict:
    """Metadata of a tiny llama (or qwen2); `more` are keys after `llama.`, with __ for the point."""
    keys = {
        "context_length": 512,
        "embedding_length": n_embd,
        "block_count": n_layer,
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head_kv,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": head_dim,
        "vocab_size": N_VOCAB,
    }
    keys |= {k.replace("__", "."): v for k, v in more.items()}
    return {"general.architecture": architecture} | {f"{architecture}.{k}": v for k, v in keys.items() if v is not None}


def shapes(m: dict, bias=False, tied=False, freqs=False) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor the metadata calls for."""
    get = SimpleNamespace(**{k.rpartition(".")[2]: v for k, v in m.items()})
    n, n_ff = get.embedding_length, get.feed_forward_length
    q, k, v = get.head_count * get.key_length, get.head_count_kv * get.key_length, get.head_count_kv * get.value_length
    out = {"token_embd.weight": (N_VOCAB, n), "output_norm.weight": (n,)}
    if not tied:
        out["output.weight"] = (N_VOCAB, n)
    if freqs:
        out["rope_freqs.weight"] = (get.dimension_count // 2,)
    for i in range(get.block_count):
        matrices = {"attn_q": (q, n), "attn_k": (k, n), "attn_v": (v, n)}
        matrices["attn_output"] = (n, get.head_count * get.value_length)
        if bias:
            out |= {f"blk.{i}.{name}.bias": shape[:1] for name, shape in matrices.items()}
        matrices |= {"ffn_gate": (n_ff, n), "ffn_up": (n_ff, n), "ffn_down": (n, n_ff)}
        out |= {f"blk.{i}.{name}.weight": shape for name, shape in matrices.items()}
        out |= {f"blk.{i}.attn_norm.weight": (n,), f"blk.{i}.ffn_norm.weight": (n,)}
    return out


def tensors(m: dict, types=("F32",), seed=0, **options) -> dict:
    """Random tensors for gguf_writer; matrices take the `types` in turn."""
    return random(shapes(m, **options), types, seed)


def random(shapes: dict, types, seed) -> dict:
    """Random tensors of these shapes."""
    rng, out, n_matrices = np.random.default_rng(seed), {}, 0
    for name, shape in shapes.items():
        if len(shape) == 1 and "gate_inp" not in name:
            low, high = (
                (1.0, 4.0) if "freqs" in name or "factors" in name else (0.5, 1.5) if "norm" in name else (-0.3, 0.3)
            )
            out[name] = ("F32", shape, rng.uniform(low, high, shape).astype(np.float32).tobytes())
            continue
        kind = types[n_matrices % len(types)]
        n_matrices += 1
        if "gate_inp" in name:  # logits that tell experts clearly apart
            x = rng.normal(0, 3 * shape[-1] ** -0.5, shape).astype(np.float32)
            out[name] = ("F32", shape, x.tobytes())
            continue
        x = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        out[name] = (kind, shape, quantize(x, GGMLQuantizationType[kind]).tobytes())
    return out


def write(path, types=("F32",), seed=0, bias=False, tied=False, freqs=False, **more):
    """Write a tiny llama to `path`; see `meta` and `tensors`."""
    m = meta(**more)
    return gguf_writer.write(path, m, tensors(m, types, seed, bias=bias, tied=tied, freqs=freqs))
