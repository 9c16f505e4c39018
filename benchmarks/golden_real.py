"""Our logits, greedy texts, token ids and perplexities against the reference data: a table, results/golden_real.json.

python benchmarks/golden_real.py GOLDEN [MODELS] [--only NAME] [--ppl CHUNKS]

GOLDEN: folder of the reference data (its README says what the numbers mean). MODELS: folder with smollm2.gguf,
gemma3_270m.gguf, qwen25_coder_05b.gguf and qwen25_coder_15b.gguf (GOLDEN/real/sources.json says where they come from).
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import report

import ikpy_llm
from ikpy_llm.engine.measure.perplexity import perplexity

TINY = ("llama", "qwen2", "gemma3")
REAL = ("smollm2", "gemma3_270m", "qwen25_coder_05b", "qwen25_coder_15b")
PROMPTS = ("capital", "code", "kjv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("golden", type=Path)
    parser.add_argument("models", type=Path, nargs="?")
    parser.add_argument("--only", help="one model")
    parser.add_argument("--ppl", type=int, default=-1, help="chunks of the perplexity at most, -1 = all, 0 = none")
    a = parser.parse_args()
    found = {}
    for name in (*TINY, *REAL):
        path = a.golden / "models" / f"{name}.gguf" if name in TINY else (a.models or a.golden) / f"{name}.gguf"
        if a.only not in (None, name) or not path.is_file():
            continue
        with ikpy_llm.Model.load(path, n_ctx=512) as model:
            found[name] = (tiny if name in TINY else real)(model, a.golden, name, a.ppl)
        for key, value in found[name].items():
            print(f"{name:17} {key:24} {value}", flush=True)
    if not a.only:
        report.write("golden_real", {"models": found}, ["python", "benchmarks/golden_real.py", "GOLDEN", "MODELS"])


def difference(got, expected) -> dict[str, float]:
    d = abs(got - expected)
    return {"max": round(float(d.max()), 5), "mean": round(float(d.mean()), 6)}


def greedy(model, ids, expected) -> dict:
    """How many tokens agree; where the first differs, by how much ours was preferred."""
    session = model.session
    session.rewind(0)
    logits = session.eval(ids)[0]
    for i, token in enumerate(expected):
        if logits.argmax() != token:
            return {"same": i, "of": len(expected), "margin": round(float(logits.max() - logits[token]), 4)}
        logits = session.eval([token])[0]
    return {"same": len(expected), "of": len(expected)}


def tiny(model, golden: Path, name: str, chunks: int) -> dict:
    data, out = np.load(golden / "models" / f"{name}.npz"), {}
    for prompt in ("short", "medium", "long"):
        ids, expected = data[f"{prompt}.ids"], data[f"{prompt}.hf"]
        logits = model.logits(ids)
        assert model.tokenize(str(data[f"{prompt}.prompt"])) == list(ids), prompt
        same = float((logits.argmax(1) == expected.argmax(1)).mean())
        out[f"{prompt} hf"] = difference(logits, expected) | {"argmax": round(same, 4)}
        out[f"{prompt} greedy"] = greedy(model, ids, data[f"{prompt}.hf_greedy"])
    if chunks:
        text = (golden / "text/heldout.txt").read_text(encoding="utf-8")
        stated = {k: v for k, v in json.loads(str(data["report"])).items() if "ppl" in k or "perplex" in k}
        out["perplexity"] = {"ikpy": measured(model, text, 256, chunks)[-1], "stated": stated}
    return out


def real(model, golden: Path, name: str, chunks: int) -> dict:
    data, out = np.load(golden / "real" / f"logits_{name}.npz"), {}
    out["token ids"] = tokens(model, golden / "real" / f"tok_{name}.json.gz")
    for prompt in PROMPTS:
        ids = data[f"{prompt}.ids"]
        logits = model.logits(ids)
        first = 1 if name == "qwen25_coder_15b" else 0  # engines differ by 10 at its position 0: not a test of anything
        for engine in ("deqf32", "ik_fa1", "ml_fa1"):
            if f"{prompt}.{engine}.top_ids" in data:
                top, values = (data[f"{prompt}.{engine}.top_{k}"][first:] for k in ("ids", "vals"))
                same = round(float((logits[first:].argmax(1) == top[:, 0]).mean()), 4)
                got = np.take_along_axis(logits[first:], top.astype(np.int64), 1)
                out[f"{prompt} {engine}"] = difference(got, values) | {"argmax": same}
                out[f"{prompt} greedy {engine}"] = greedy(model, ids, data[f"{prompt}.{engine}.greedy"])
    if chunks:
        text = (golden / "text/ppl.txt").read_text(encoding="utf-8")
        runs = json.loads((golden / "real/ppl.json").read_text())["runs"]
        runs = {k.removeprefix(name + "."): r["running_ppl"] for k, r in runs.items() if k.startswith(name + ".")}
        runs = {k: r for k, r in runs.items() if r and ".f16." in f".{k}."}  # of equal KV caches
        longest = max(map(len, runs.values()))
        got = measured(model, text, 512, longest if chunks < 0 else min(longest, chunks))
        pairs = {k: [n := min(len(r), len(got)), r[n - 1], got[n - 1]] for k, r in runs.items()}
        out["perplexity"] = {"ikpy": got[-1], "chunks": len(got), "[chunks, theirs, ours]": pairs}
    return out


def tokens(model, path: Path) -> str:
    """Strings whose ids are exactly the reference's, in all four ways to treat special tokens."""
    cases = json.loads(gzip.decompress(path.read_bytes()))
    ways = {"plain": (False, False), "special_added": (True, False), "special_parsed": (False, True)}
    ways["special_added_parsed"] = True, True
    good = sum(
        all(
            model.tokenize(c["text"], add_special=a, parse_special=p) == c["ids_" + way] for way, (a, p) in ways.items()
        )
        for c in cases
        if isinstance(c["text"], str)
    )
    return f"{good} of {sum(isinstance(c['text'], str) for c in cases)} strings"


def measured(model, text: str, n_ctx: int, chunks: int) -> list[float]:
    bos = model.vocab.bos if model.vocab.add_bos else None
    found = perplexity(model.session, model.tokenize(text), bos=bos, n_ctx=n_ctx, n_chunks=chunks)
    return [round(x, 4) for x in found.running]


if __name__ == "__main__":
    main()
