"""Perplexities with every type of the KV cache that the reference data has: a table, results/kv_perplexity.json.

python benchmarks/kv_perplexity.py GOLDEN MODELS [--chunks 8] [--only NAME] [--exact]

GOLDEN and MODELS as in golden_real.py. In brackets: how far from ik_llama.cpp after as many chunks, with the standard
error of that difference over the chunks. --exact: also with -fa off, whose products are exact.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from itertools import pairwise
from pathlib import Path

import report

import ikpy_llm
from ikpy_llm.engine.measure.perplexity import perplexity

MODELS = ("smollm2", "qwen25_coder_05b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("golden", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--only", help="one model")
    parser.add_argument("--exact", action="store_true", help="also without flash attention")
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
        for flash_attn in (True, False)[: 1 + a.exact]:
            options = {"cache_type_k": k, "cache_type_v": v, "khad": "khad" in how, "flash_attn": flash_attn}
            found = measure(a.models / f"{model}.gguf", text, a.chunks, **options)
            ik = run["running_ppl"][: len(found.running)]
            off, error = difference(found.running, ik)
            rows.append({"model": model, **options, "ppl": round(found.value, 4), "ik": ik[-1]})
            rows[-1] |= {"difference": off, "error": error, "chunks": len(ik)}
            mode = "" if flash_attn else "-fa off"
            print(
                f"{model:17} {k:7} {v:7} {how:8} {mode:7} {found.value:9.4f} ik {ik[-1]:9.4f} "
                f"({off:+.2%} +- {error:.2%})",
                flush=True,
            )
    if not a.only:
        command = ["python", "benchmarks/kv_perplexity.py", "GOLDEN", "MODELS"]
        report.write("kv_perplexity", {"chunks": a.chunks, "rows": rows}, command)


def measure(path: Path, text: str, chunks: int, **options):
    with ikpy_llm.Model.load(path, n_ctx=512, **options) as model:
        bos = model.vocab.bos if model.vocab.add_bos else None
        return perplexity(model.session, model.tokenize(text), bos=bos, n_ctx=512, n_chunks=chunks)


def difference(ours: list[float], others: list[float]) -> tuple[float, float]:
    """(difference of the mean loss, its standard error over chunks) of two runs' perplexities after each chunk."""
    each = [
        [(i + 1) * y - i * x for i, (x, y) in enumerate(pairwise([0.0, *map(math.log, r)]))] for r in (ours, others)
    ]
    gaps = [x - y for x, y in zip(*each, strict=True)]
    return statistics.mean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan


if __name__ == "__main__":
    main()
