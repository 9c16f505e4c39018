"""Writes random deepseek2 models small enough to run in milliseconds, with every option the architecture has."""

import gguf_writer
import numpy as np
import tiny_llama
from tiny_llama import N_VOCAB

SIZES = {"n_head": 4, "nope": 32, "n_rot": 16, "v_dim": 32, "rank": 64}
LAYOUTS = "kv_b", "k_b", "all"  # attn_kv_b; attn_k_b and attn_v_b; all three, these two with heads one below the other
V3 = {
    "attention__q_lora_rank": 32,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 2.5,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 64,
    "rope__scaling__yarn_log_multiplier": 0.1,
}


def meta(
    layout="kv_b", n_layer=3, n_dense=1, n_expert=8, n_used=3, n_shared=1, n_ff_expert=32, sizes=None, **more
) -> dict:
    """Metadata; layout: one of LAYOUTS, sizes: others than SIZES. `more` are keys after `deepseek2.`, with __ for the
    point, None takes one out.
    """
    s = SIZES | (sizes or {})
    k_dim = s["nope"] + s["n_rot"]
    keys = {
        "leading_dense_block_count": n_dense,
        "attention.kv_lora_rank": s["rank"],
        "rope.dimension_count": s["n_rot"],
        "expert_count": n_expert,
        "expert_used_count": n_used,
        "expert_shared_count": n_shared,
        "expert_feed_forward_length": n_ff_expert,
        "attention.head_count_kv": s["n_head"],
        "attention.key_length": k_dim,
        "attention.value_length": s["v_dim"],
    }
    if layout == "k_b":
        keys |= {"attention.head_count_kv": 1, "attention.key_length": s["rank"] + s["n_rot"]}
        keys |= {"attention.value_length": s["rank"], "attention.key_length_mla": k_dim}
        keys |= {"attention.value_length_mla": s["v_dim"]}
    more = keys | {k.replace("__", "."): v for k, v in more.items()}
    return tiny_llama.meta(architecture="deepseek2", n_layer=n_layer, n_head=s["n_head"], **more)


def shapes(m: dict, layout="kv_b", bias=False, sizes=None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor; bias: the choice of experts has one, though the keys do not say sigmoid."""
    get = {k.removeprefix("deepseek2."): v for k, v in m.items()}
    n, s, n_expert = get["embedding_length"], SIZES | (sizes or {}), get.get("expert_count", 0)
    q, rank, q_rank = s["n_head"] * (s["nope"] + s["n_rot"]), s["rank"], get.get("attention.q_lora_rank", 0)
    out = {"token_embd.weight": (N_VOCAB, n), "output_norm.weight": (n,), "output.weight": (N_VOCAB, n)}
    for i in range(get["block_count"]):
        b = f"blk.{i}."
        out |= {b + "attn_norm.weight": (n,), b + "ffn_norm.weight": (n,)}
        if q_rank:
            out |= {b + "attn_q_a.weight": (q_rank, n), b + "attn_q_a_norm.weight": (q_rank,)}
            out[b + "attn_q_b.weight"] = (q, q_rank)
        else:
            out[b + "attn_q.weight"] = (q, n)
        out |= {b + "attn_kv_a_mqa.weight": (rank + s["n_rot"], n), b + "attn_kv_a_norm.weight": (rank,)}
        if layout != "k_b":
            out[b + "attn_kv_b.weight"] = (s["n_head"] * (s["nope"] + s["v_dim"]), rank)
        else:
            out[b + "attn_k_b.weight"] = (s["n_head"], rank, s["nope"])
            out[b + "attn_v_b.weight"] = (s["n_head"], s["v_dim"], rank)
        out[b + "attn_output.weight"] = (n, s["n_head"] * s["v_dim"])
        dense = i < get.get("leading_dense_block_count", 0) or not n_expert
        if not dense:
            out |= {b + "ffn_gate_inp.weight": (n_expert, n)}
            if bias or get.get("expert_gating_func") == 2:
                out[b + "exp_probs_b.bias"] = (n_expert,)
        width = get.get("expert_feed_forward_length", 0)
        parts = {"": get["feed_forward_length"]} if dense else {"_exps": width}
        if not dense and get["expert_shared_count"]:
            parts["_shexp"] = width * get["expert_shared_count"]
        for suffix, wide in parts.items():
            many = (n_expert,) if suffix == "_exps" else ()
            out |= {f"{b}ffn_{x}{suffix}.weight": (*many, wide, n) for x in ("gate", "up")}
            out[f"{b}ffn_down{suffix}.weight"] = (*many, n, wide)
    return out


def write(path, types=("F32",), seed=0, layout="kv_b", bias=False, sizes=None, **more):
    """Write a model to `path`; `types` of the matrices in turn, those that choose experts are F32."""
    m = meta(layout=layout, sizes=sizes, **more)
    tensors = tiny_llama.random(shapes(m, layout, bias, sizes), types, seed)
    if layout == "all":
        tensors |= parts(m, tensors, SIZES | (sizes or {}))
    return gguf_writer.write(path, m, tensors)


def parts(m: dict, tensors: dict, s: dict) -> dict:
    """attn_k_b and attn_v_b as older files of ik_llama.cpp have them beside attn_kv_b (of F32): two dimensions each."""
    out = {}
    for i in range(m["deepseek2.block_count"]):
        both = np.frombuffer(tensors[f"blk.{i}.attn_kv_b.weight"][2], np.float32)
        both = both.reshape(s["n_head"], s["nope"] + s["v_dim"], s["rank"])
        k, v = both[:, : s["nope"]].swapaxes(1, 2), both[:, s["nope"] :]
        for name, x in ("k", k), ("v", v):
            out[f"blk.{i}.attn_{name}_b.weight"] = ("F32", (s["n_head"] * x.shape[1], x.shape[2]), x.tobytes())
    return out
