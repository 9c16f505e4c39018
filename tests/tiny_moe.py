"""Writes random models with experts small enough to run in milliseconds."""

import gguf_writer
import tiny_llama
from tiny_llama import N_VOCAB


def meta(architecture="qwen3moe", n_expert=8, n_used=3, n_ff_expert=32, **more) -> dict:
    """Metadata; `more` are keys after the architecture, with __ for the point, None takes one out."""
    keys = {"expert_count": n_expert, "expert_used_count": n_used}
    if architecture != "llama":
        keys["expert_feed_forward_length"] = n_ff_expert
    if architecture == "qwen2moe":
        keys["expert_shared_feed_forward_length"] = 64
    return tiny_llama.meta(architecture=architecture, **keys | more)


def shapes(m: dict, **options) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor."""
    architecture = m["general.architecture"]
    get = {k.removeprefix(architecture + "."): v for k, v in m.items()}
    n, head, n_expert = get["embedding_length"], get["attention.key_length"], get["expert_count"]
    n_ff = get.get("expert_feed_forward_length", get["feed_forward_length"])
    out = tiny_llama.shapes(m, **options)
    for name in [name for name in out if ".ffn_" in name and "norm" not in name]:
        del out[name]
    for i in range(get["block_count"]):
        blk = f"blk.{i}."
        out[blk + "ffn_gate_inp.weight"] = (n_expert, n)
        for part in ("gate", "up"):
            out[f"{blk}ffn_{part}_exps.weight"] = (n_expert, n_ff, n)
        out[blk + "ffn_down_exps.weight"] = (n_expert, n, n_ff)
        if architecture.startswith("qwen3"):
            out |= {f"{blk}attn_{x}_norm.weight": (head,) for x in "qk"}
        if architecture == "qwen2moe":
            width = get["expert_shared_feed_forward_length"]
            out |= {f"{blk}ffn_{part}_shexp.weight": (width, n) for part in ("gate", "up")}
            out |= {blk + "ffn_down_shexp.weight": (n, width), blk + "ffn_gate_inp_shexp.weight": (n,)}
    return out


def write(path, types=("F32",), seed=0, bias=False, tied=False, scales=False, **more):
    """Write a model to `path`; `types` of the matrices in turn, those that choose experts are F32.

    scales: every matrix has one number, or one for each expert, that multiplies its product, and an input scale.
    """
    m = meta(**more)
    shape_of = shapes(m, bias=bias, tied=tied)
    if scales:
        matrices = {n.removesuffix(".weight"): s for n, s in shape_of.items() if len(s) > 1 and "embd" not in n}
        sizes = {n: (s[0],) if len(s) == 3 else (1,) for n, s in matrices.items()}
        shape_of |= {f"{n}.{kind}": size for n, size in sizes.items() for kind in ("scale", "input_scale")}
    return gguf_writer.write(path, m, tiny_llama.random(shape_of, types, seed))


__all__ = ["N_VOCAB", "meta", "shapes", "write"]
