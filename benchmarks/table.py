"""README's tables, from the files in results/: prints them, or with --write puts them between README's SPEED marks.

python benchmarks/table.py [--write]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
MARKS = re.compile(r"(?<=<!-- SPEED).*?(?=<!-- /SPEED -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--write", action="store_true")
    parts = [part(load(name)) for name, part in PARTS.items() if (RESULTS / f"{name}.json").exists()]
    text = "\n\n".join(parts)
    if parser.parse_args().write:
        note = " written by benchmarks/table.py from benchmarks/results/: do not edit here -->\n"
        README.write_text(MARKS.sub(lambda _: note + text + "\n", README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(text)


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: list[str], rows: list[list]) -> str:
    """A markdown table, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def origin(found: dict) -> str:
    """Where figures come from: machine, date and command."""
    machine, roof = found["machine"], found.get("roof") or found.get("roofs", [None])[0]
    threads = f", {found['threads']} threads" if "threads" in found else ""
    roofs = f"; roofs {roof['gbps']:.0f} GB/s and {roof['gmacs']:.0f} GMAC/s" if roof else ""
    return f"`{found['command']}`: {machine['cpu']}, {machine['cores']} cores{threads}{roofs}; {found['time'][:10]}."


def peer(found: dict) -> str:
    rows = [[t, f"{x['ikpy']:.0f}", f"{x['peer']:.0f}", f"{x['ratio']:.2f}"] for t, x in found["tests"].items()]
    head = [found["model"], "ikpy t/s", f"{found['peer']} t/s", "ratio"]
    return f"{origin(found)} Medians of alternating runs.\n\n{table(head, rows)}"


def kernels(found: dict) -> str:
    """One row per type: each kernel and width as its rate and its share of the roof."""
    columns = list(dict.fromkeys((r["kernel"], r["n"]) for r in found["rows"]))
    cells = {(r["type"], r["kernel"], r["n"]): r for r in found["rows"]}
    rows = []
    for name in dict.fromkeys(r["type"] for r in found["rows"]):
        row = [cells.get((name, *column)) for column in columns]
        rows.append([name, *("" if r is None else f"{r[unit(r)]:.0f} ({r['roof_share']:.0%})" for r in row)])
    units = {"gemv": "GB/s", "gemm": "GMAC/s"}
    head = ["type", *(f"{kernel} n={n} {units[kernel]}" for kernel, n in columns)]
    return f"{origin(found)} In brackets the share of the roof that binds.\n\n{table(head, rows)}"


def unit(row: dict) -> str:
    return "gbps" if row["kernel"] == "gemv" else "gmacs"


def startup(found: dict) -> str:
    rows = []
    if warm := found.get("warm"):
        rows.append(["warm start to the first token (median)", f"{warm['first_token_s']:.2f} s"])
        rows.append(
            ["peak resident memory", f"{warm['peak_rss_mb_128_tokens']:.0f} MB (file {warm['model_mb']:.0f} MB)"]
        )
    if cold := found.get("cold"):
        rows.append(["first start, empty object cache", f"{cold['first_token_s']:.1f} s, {cold['kernels']} kernels"])
    if neighbour := found.get("neighbour"):
        rows.append(
            ["generation with one core taken by another process", f"{neighbour['share']:.0%} of the speed alone"]
        )
    return f"{origin(found)}\n\n{table([found['model'], ''], rows)}"


PARTS = {"peer": peer, "kernels": kernels, "startup": startup}

if __name__ == "__main__":
    main()
