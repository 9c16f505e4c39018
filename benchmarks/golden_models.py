"""The tiny models of the reference data: logits, greedy texts, perplexities: a table and results/golden_models.json.

python benchmarks/golden_models.py GOLDEN [--only NAME] [--ppl CHUNKS]

GOLDEN: folder of the reference data; its README says how perplexity is measured and what the numbers of "hf" (F16
files, transformers in float32) and "hf_deq" (quantized ones, float32 on the file's values) mean. "no groups": without
the limit on groups of experts, which ik_llama.cpp does not know. Exits with 1 where a perplexity is off by 0.1 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import report

from ikpy_llm import Model, models
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.measure.perplexity import perplexity
from ikpy_llm.engine.options import Options
from ikpy_llm.engine.step.session import Session

N_CTX, ACCEPTED = 256, 1e-3  # tokens of a chunk; relative difference of perplexities
GROUPS = "deepseek2.expert_group_count", "deepseek2.expert_group_used_count"
PROMPTS = "short", "medium", "long"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("golden", type=Path)
    parser.add_argument("--only", help="one model")
    parser.add_argument("--ppl", type=int, default=-1, help="chunks of the perplexity at most, -1 = all")
    a = parser.parse_args()
    found, wrong = {}, []
    for path in sorted((a.golden / "models").glob("*.gguf")):
        if a.only in (None, path.stem):
            found[path.stem] = of_model(path, a.golden / "text/heldout.txt", a.ppl)
    print("\n| model | max | mean | of ik max | mean | perplexity | reference | ik | difference |\n" + "|---" * 9 + "|")
    for name, variants in found.items():
        for variant, row in variants.items():
            d, ik, p = row["logits"]["long"], row["stated"].get("ik", {}), row["perplexity"]
            theirs = " | ".join(f"{ik[k]:.2g}" if ik else "-" for k in ("max", "mean"))
            values = f"{p['ikpy']:.4f} | {p['reference']:.4f} | {p.get('ik_fa1', 0) or '-'} | {p['difference']:+.2%}"
            print(f"| {name}, {variant} | {d['max']:.2g} | {d['mean']:.2g} | {theirs} | {values} |")
            wrong += [f"{name}, {variant}: perplexity"] * (abs(p["difference"]) > ACCEPTED)
            wrong += [f"{name}, {variant}: {key}" for key in ("token by token", "threads") if not row[key]]
    if not a.only:
        report.write("golden_models", {"models": found}, ["python", "benchmarks/golden_models.py", "GOLDEN"])
    raise SystemExit("\n".join(wrong) if wrong else 0)


def of_model(path: Path, text: Path, chunks: int) -> dict:
    """One row for every way to run the file: modes of latent attention, groups of experts or none."""
    data = dict(np.load(path.with_suffix(".npz")))
    stated, latent = json.loads(str(data["report"])), path.stem.startswith("deepseek2")
    key = "hf" if "long.hf" in data else "hf_deq"
    out = {}
    for mla in range(4) if latent else [3]:
        variant = f"mla {mla}" if latent else "all"
        if path.stem != "deepseek2_v3.mix":  # its reference is without groups
            out[variant] = measured(path, text, chunks, mla, data, stated, key, True)
        if path.stem.startswith("deepseek2_v3"):
            name = f"{key}_nogroup" if f"long.{key}_nogroup_delta" in data else key
            out[variant + ", no groups"] = measured(path, text, chunks, mla, data, stated, name, False)
    return out


def measured(path, text: Path, chunks: int, mla: int, data: dict, stated: dict, key: str, groups: bool) -> dict:
    """Everything about one way to run the file. `key`: of the expected logits, or of what is added to them."""
    base = key.removesuffix("_nogroup")
    scaled = "long.hf_deq_ktscale_delta" in data  # products of two trellis types have a factor that rows have not
    ppl_key = "hf_deq_ktscale" if scaled else key
    way = "_vs_nogroup" * (key == "hf_nogroup")  # how theirs were run
    theirs = {"ik": stated["long"].get("ik_fa1" + way), "ml": stated["long"].get("ml_fa0" + way)}
    if groups and path.stem.startswith("deepseek2_v3"):
        del theirs["ik"]  # which has no groups
    row = {"logits": {}, "greedy": {}, "stated": {k: v for k, v in theirs.items() if isinstance(v, dict)}}
    with opened(path, groups, mla=mla, threads=2) as model:
        for prompt in PROMPTS:
            if f"{prompt}.{base}" not in data:
                continue
            ids, expected = data[f"{prompt}.ids"], data[f"{prompt}.{base}"].astype(np.float32)
            for more in ([f"{key}_delta"] if key != base else []) + (["hf_deq_ktscale_delta"] if scaled else []):
                expected = expected + data[f"{prompt}.{more}"].astype(np.float32)
            logits = model.logits(ids)
            row["logits"][prompt] = differences(logits, expected)
            if f"{prompt}.{key}_greedy" in data and not scaled:
                row["greedy"][prompt] = greedy(model, ids, data[f"{prompt}.{key}_greedy"])
        model.reset()
        tokens = np.concatenate([model.session.eval([token]) for token in ids])
        one = differences(tokens, logits)
        two_ways = mla == 3 and path.stem.startswith("deepseek2")  # prompts as mode 2, tokens as mode 1
        row["token by token"] = one["argmax"] > 0.98 if two_ways else not one["max"]
        row["token by token differs"] = one
        bos = model.vocab.bos if model.vocab.add_bos else None
        words = model.tokenize(text.read_text(encoding="utf-8"))
        value = perplexity(model.session, words, bos=bos, n_ctx=N_CTX, n_chunks=chunks).value
    with opened(path, groups, mla=mla, threads=3, n_ubatch=50) as model:
        row["threads"] = not differences(model.logits(ids), logits)["max"]
    theirs = stated["ppl_ctx256"]
    found = {"ikpy": round(value, 5), "reference": round(theirs[ppl_key], 5)}
    found["difference"] = value / theirs[ppl_key] - 1
    row["perplexity"] = found | {k: v for k, v in theirs.items() if k.startswith(("ik", "ml"))}
    return row


def opened(path: Path, groups: bool, **options) -> Model:
    """The model, with or without the limit on groups of experts."""
    file = open_gguf(path)
    for key in () if groups else GROUPS:
        file.meta.pop(key, None)
    session = Session(file, models.builder(file.meta, str(path)), Options(n_ctx=512, **options))
    return Model(session, file.meta, path, 0.0)


def differences(got: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Largest and mean difference, the mean without the two worst positions, and how often the best token agrees.

    Without them because a nearly equal choice, of experts or of the key that attention looks at, moves all logits of a
    position (tests/test_golden.py compares every position with arithmetic on rounded activations).
    """
    d = abs(got - expected)
    clear = np.sort(d.mean(1))[:-2].mean()
    same = (got.argmax(1) == expected.argmax(1)).mean()
    found = {"max": d.max(), "mean": d.mean(), "mean without 2": clear, "argmax": same}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def greedy(model: Model, ids, expected) -> dict:
    """How many tokens agree; where the first differs, by how much ours was preferred."""
    session = model.session
    session.rewind(0)
    logits = session.eval(ids)[0]
    for i, token in enumerate(expected):
        if logits.argmax() != token:
            return {"same": i, "of": len(expected), "margin": float(logits.max() - logits[token])}
        logits = session.eval([token])[0]
    return {"same": len(expected), "of": len(expected)}


if __name__ == "__main__":
    main()
