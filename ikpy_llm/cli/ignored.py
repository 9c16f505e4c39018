"""Flags of llama.cpp and ik_llama.cpp that are accepted and change nothing, so that recipes from model cards work.

Value: how many words follow the flag, in argparse's terms (0, None for exactly one, 2, "?" for an optional one).
"""

GPU = {
    "-ngl": None, "--gpu-layers": None, "--n-gpu-layers": None,
    "-ngld": None, "--gpu-layers-draft": None, "--n-gpu-layers-draft": None,
    "-sm": None, "--split-mode": None,
    "-mg": None, "--main-gpu": None,
    "-ts": None, "--tensor-split": None,
    "-dev": None, "--device": None,
    "-nkvo": "?", "--no-kv-offload": "?", "-nopo": "?", "--no-op-offload": "?", "--no-host": "?",
    "-rpc": None, "--rpc": None, "-fitt": None, "--fit-target": None, "-fitc": None, "--fit-ctx": None,
    "-cuda": None, "--cuda-params": None,
    "-op": None, "--offload-policy": None,
    "-ooae": "?", "-no-ooae": "?",
    "--fit": "?", "-fit": "?", "--fit-margin": None,
    "-smgs": 0, "-grt": None,
    "-cmoe": 0, "--cpu-moe": 0, "-ncmoe": None, "--n-cpu-moe": None,
}  # fmt: skip

# Always on here, or without meaning in this engine: fused operations, graph reuse, loading, log and console switches.
WITHOUT_EFFECT = {
    "-fmoe": "?", "--fused-moe": "?", "-no-fmoe": "?", "-no-fug": "?",
    "-mqkv": "?", "-muge": "?", "-ger": "?",
    "-gr": "?", "-no-gr": "?", "-sas": "?",
    "-thp": "?", "--no-warmup": 0, "--warmup": 0, "-mmp": None, "-embd": None, "-rcache": "?", "--list-devices": 0,
    "--no-mmap": 0, "--mmap": 0, "--mlock": 0, "-lm": None, "--load-mode": None, "--numa": None,
    "-dio": "?", "--direct-io": "?", "--defer-experts": "?", "--prefetch-experts": 0,
    "--prefetch-experts-threads": None,
    "-C": None, "--cpu-mask": None, "--cpu-strict": None, "--prio": None, "--poll": None, "-np": None,
    "--parallel": None, "-cb": 0, "--cont-batching": 0, "--jinja": 0,
    "--no-perf": 0, "--log-disable": 0, "--no-log": 0, "--minilog": 0, "--verbosity": None, "-lv": None,
    "--log-verbosity": None, "--log-file": None, "--log-jsonl": 0, "--log-colors": "?", "--log-prefix": 0,
    "--log-timestamps": 0,
}  # fmt: skip

# What would change the result, and does not here yet.
NOT_YET = {
    "-ctk-first": None, "-ctk-last": None, "-ctv-first": None, "-ctv-last": None,
    "-ot": None, "--override-tensor": None,
    "--check-tensors": 0, "-vq": 0, "--validate-quants": 0, "-dr": 0, "--dry-run": 0,
    "--lora": None, "--lora-scaled": 2, "--control-vector": None, "--control-vector-scaled": 2,
    "--control-vector-layer-range": 2,
    "--no-jinja": 0, "--reasoning-format": None,
    "-md": None, "--model-draft": None, "--spec-type": None, "--draft": None, "--draft-max": None,
    "--draft-min": None, "--draft-p-min": None,
    "--image": None, "--audio": None, "--mmproj": None, "-mm": None,
    "--banned-string-file": None, "--cfg-negative-prompt": None, "--cfg-scale": None,
}  # fmt: skip

IGNORED = {**GPU, **WITHOUT_EFFECT, **NOT_YET}
