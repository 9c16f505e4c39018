"""Flags of llama.cpp and ik_llama.cpp that ikpy has not, in three classes, so that recipes from model cards work.

Value: how many words follow the flag, in argparse's terms (0, None for exactly one, 2, "?" for an optional one).
"""

GPU = {
    "-ngl": None, "--gpu-layers": None, "--n-gpu-layers": None,
    "-ngld": None, "--gpu-layers-draft": None, "--n-gpu-layers-draft": None,
    "-sm": None, "--split-mode": None,
    "-mg": None, "--main-gpu": None, "--max-gpu": None,
    "-ts": None, "--tensor-split": None,
    "-dev": None, "--device": None, "-devd": None, "--device-draft": None,
    "-nkvo": "?", "--no-kv-offload": "?", "-kvo": "?", "--kv-offload": "?",
    "-nopo": "?", "--no-op-offload": "?", "--op-offload": "?", "--no-host": "?",
    "--mmproj-offload": 0, "--no-mmproj-offload": 0,
    "-rpc": None, "--rpc": None, "-fitt": None, "--fit-target": None, "-fitc": None, "--fit-ctx": None,
    "-cuda": None, "--cuda-params": None,
    "-op": None, "--offload-policy": None,
    "-ooae": "?", "-no-ooae": "?", "--no-offload-only-active-experts": "?",
    "--fit": "?", "-fit": "?", "--fit-margin": None, "-gfm": None, "--gpu-fit-margin": None,
    "-smgs": 0, "--split-mode-graph-scheduling": 0, "-smf16": 0, "--split-mode-f16": 0, "-smf32": 0,
    "--split-mode-f32": 0, "-grt": None, "--graph-reduce-type": None, "-gap": None, "--graph-attn-precision": None,
    "-cmoe": 0, "--cpu-moe": 0, "-ncmoe": None, "--n-cpu-moe": None,
    "-cmoed": 0, "--cpu-moe-draft": 0, "-ncmoed": None, "--n-cpu-moe-draft": None,
    "-ot": None, "--override-tensor": None, "-otd": None, "--override-tensor-draft": None,  # where tensors lie
    "--print-overrides": None,
}  # fmt: skip

# Always on here, or without meaning in this engine: fused operations, graph reuse, loading, threads, logs.
WITHOUT_EFFECT = {
    "-a": None, "--alias": None, "--display-prompt": 0,
    "-fmoe": "?", "--fused-moe": "?", "-no-fmoe": "?", "--no-fused-moe": "?", "-no-fug": "?", "--no-fused-up-gate": "?",
    "-no-mmad": "?", "--no-fused-mul-multiadd": "?", "-mqkv": "?", "--merge-qkv": "?", "-muge": "?",
    "--merge-up-gate-experts": "?", "--merge-up-gate-exps": "?", "-ger": "?", "--grouped-expert-routing": "?",
    "-gr": "?", "--graph-reuse": "?", "-no-gr": "?", "--no-graph-reuse": "?", "-sas": "?", "--scheduler-async": "?",
    "-thp": "?", "--transparent-huge-pages": "?", "--no-warmup": 0, "--warmup": 0, "-mmp": None,
    "-rcache": "?", "--rope-cache": "?", "-wgt": None, "--worst-graph-tokens": None, "-mea": None,
    "--max-extra-alloc": None, "-bs": 0, "--backend-sampling": 0,
    "--no-mmap": 0, "--mmap": 0, "--mlock": 0, "-lm": None, "--load-mode": None, "--numa": None,
    "-dio": "?", "--direct-io": "?", "-ndio": 0, "--no-direct-io": 0, "--defer-experts": "?", "--prefetch-experts": 0,
    "--prefetch-experts-threads": None,
    "-C": None, "--cpu-mask": None, "-Cr": None, "--cpu-range": None, "--cpu-strict": None, "--prio": None,
    "--poll": None, "-Cb": None, "--cpu-mask-batch": None, "-Crb": None, "--cpu-range-batch": None,
    "--cpu-strict-batch": None, "--prio-batch": None, "--poll-batch": None,
    "-np": None, "--parallel": None, "-ns": None, "--sequences": None, "-cb": 0, "--cont-batching": 0, "-nocb": 0,
    "--no-cont-batching": 0, "-kvu": 0, "--kv-unified": 0, "-no-kvu": 0, "--no-kv-unified": 0,
    "-cram": None, "--cache-ram": None, "-crs": None, "--cache-ram-similarity": None, "-ctx-ckpt": None,
    "--ctx-checkpoints": None, "-dt": None, "--defrag-thold": None, "-gaw": None, "--grp-attn-w": None,
    "--jinja": 0, "--no-jinja": 0, "--skip-chat-parsing": 0, "--no-skip-chat-parsing": 0, "--spm-infill": 0,
    "--control-vector-layer-range": 2, "--mmproj": None, "-mm": None, "--mmproj-auto": 0, "--no-mmproj": 0,
    "--minilog": 0, "--verbosity": None, "-lv": None,
    "--log-verbosity": None, "--log-file": None, "--log-jsonl": 0, "--log-colors": "?", "--log-prefix": 0,
    "--log-timestamps": 0, "--log-format": None, "-ld": None, "--logdir": None,
}  # fmt: skip

# What is not done, and does not change the text: guesses of a second model that the first one checks, checks of the
# file, how thoughts are shown.
NOT_YET = {
    "-md": None, "--model-draft": None, "-hfd": None, "-hfrd": None, "--hf-repo-draft": None, "--spec-type": None,
    "--spec-stage": None, "-draft": None, "--draft-params": None, "-mtp": 0, "--multi-token-prediction": 0,
    "-no-mtp": 0, "--no-multi-token-prediction": 0, "--spec-replace": 2,
    "--draft": None, "--draft-max": None, "--draft-n": None, "--draft-min": None, "--draft-n-min": None,
    "--draft-p-min": None, "--draft-p-split": None, "-cd": None, "--ctx-size-draft": None, "-td": None,
    "--threads-draft": None, "-tbd": None, "--threads-batch-draft": None, "-ctkd": None, "--cache-type-k-draft": None,
    "-ctvd": None, "--cache-type-v-draft": None, "-lcs": None, "--lookup-cache-static": None, "-lcd": None,
    "--lookup-cache-dynamic": None,
    "--check-tensors": 0, "-vq": 0, "--validate-quants": 0,
    "--reasoning-format": None, "-ptc": None, "--print-token-count": None,
}  # fmt: skip

# Without these the result would be another one, so a command does not go on, but for values that ASK_FOR_NOTHING.
REFUSED = {
    "--lora": None, "--lora-scaled": None, "--control-vector": None, "--control-vector-scaled": None,
    "-ctk-first": None, "-ctk-last": None, "-ctv-first": None, "-ctv-last": None,
    "--cache-type-k-first": None, "--cache-type-k-last": None, "--cache-type-v-first": None,
    "--cache-type-v-last": None,
    "-dr": "?", "--dry-run": "?", "--docker-repo": None, "-bf": None, "--binary-file": None,
    "--image": None, "--audio": None, "-mmu": None, "--mmproj-url": None,
    "--banned-string-file": None, "--banned-n": None, "--allowlist-pieces": None, "--allowlist-unicode-rule": None,
    "--expiring-logit-bias-file": None, "--cfg-negative-prompt": None, "--cfg-negative-prompt-file": None,
    "--cfg-scale": None, "-embd": None, "--embeddings": "?", "-gan": None, "--grp-attn-n": None, "--attention": None,
    "--reasoning-budget-message": None, "-dsa": 0, "--dsa": 0,
}  # fmt: skip
ASK_FOR_NOTHING = {
    "--cfg-scale": ("1", "1.0"),
    "-embd": ("0",),
    "--embeddings": ("0",),
    "-gan": ("1",),
    "--grp-attn-n": ("1",),
    "--attention": ("causal",),
}

IGNORED = {**GPU, **WITHOUT_EFFECT, **NOT_YET, **REFUSED}


def is_refused(given: str) -> bool:
    """Does a flag with its value ask for another result?"""
    name, _, value = given.partition(" ")
    return name in REFUSED and value not in ASK_FOR_NOTHING.get(name, ())
