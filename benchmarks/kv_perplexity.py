"""Perplexities with every type of the KV cache that the reference data has: a table, results/kv_perplexity.json.

python benchmarks/kv_perplexity.py GOLDEN MODELS [--chunks 8] [--only NAME]

GOLDEN and MODELS as in golden_real.py. In brackets: how far from ik_llama.cpp after as many chunks, and (for those two
engines alike) from their own f16.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import report

import ikpy_llm
from ikpy_llm.engine.perplexity import perplexity

MODELS = ("smollm2", "qwen25_coder_05b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("golden", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--only", help="one model")
    a = parser.parse_args()
    reference = json.loads((a.golden / "real" / "ppl.json").read_text())
    text = (a.golden / "text" / "ppl.txt").read_text(encoding="utf-8")
    rows = []
    for name, run in reference["runs"].items():
        model, engine, k, *v, how = name.split(".")
        v = v[0] if v else k
        if engine != "ik" or model not in MODELS or a.only not in (None, model) or "fa1" not in how:
            continue
        if not run["running_ppl"] or k == v == "q8_KV":
            continue
        rows.append(measure(a.models / f"{model}.gguf", text, k, v, "khad" in how, a.chunks))
        rows[-1] |= {"model": model, "ik": run["running_ppl"][min(a.chunks, len(run["running_ppl"])) - 1]}
        off = rows[-1]["ppl"] / rows[-1]["ik"] - 1
        print(
            f"{model:17} {k:7} {v:7} {how:8} {rows[-1]['ppl']:9.4f} ik {rows[-1]['ik']:9.4f} ({off:+.2%})", flush=True
        )
    if not a.only:
        command = ["python", "benchmarks/kv_perplexity.py", "GOLDEN", "MODELS"]
        report.write("kv_perplexity", {"chunks": a.chunks, "rows": rows}, command)


def measure(path: Path, text: str, k: str, v: str, khad: bool, chunks: int) -> dict:
    with ikpy_llm.Model.load(path, n_ctx=512, cache_type_k=k, cache_type_v=v, khad=khad) as model:
        bos = model.vocab.bos if model.vocab.add_bos else None
        found = perplexity(model.session, model.tokenize(text), bos=bos, n_ctx=512, n_chunks=chunks)
    return {"k": k, "v": v, "khad": khad, "ppl": round(found.value, 4)}


if __name__ == "__main__":
    main()
