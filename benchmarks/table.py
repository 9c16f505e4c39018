"""The tables of README and docs/speed.md, from the files in results/: prints them, or with --write puts them between
the SPEED marks there.

python benchmarks/table.py [--write]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README, SPEED = (Path(__file__).parents[1] / name for name in ("README.md", "docs/speed.md"))
MARKS = re.compile(r"(?<=<!-- SPEED).*?(?=<!-- /SPEED -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for file, parts in PAGES.items():
        found = [part(load(path)) for name, part in parts.items() for path in sorted(RESULTS.glob(f"{name}.json"))]
        text = "\n\n".join(found)
        if write:
            put(file, text)
        else:
            print(f"{file.name}\n\n{text}\n")


def put(file: Path, text: str) -> None:
    """Between the marks of a page."""
    text = f" written by benchmarks/table.py from benchmarks/results/: do not edit here -->\n{text}\n"
    file.write_text(MARKS.sub(lambda _: text, file.read_text(encoding="utf-8")), encoding="utf-8")


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


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


def types(records: list[dict]) -> str:
    """Records of `ikpy-bench --synthetic -o json`: a row per type, fastest generation first."""
    rows: dict[str, dict] = {}
    for r in records:
        rows.setdefault(r["weight_type"], {})["tg" if r["n_gen"] else "pp"] = r
    cells = []
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["tg"]["avg_ts"]):
        pp, tg = row["pp"], row["tg"]
        shares = [f"{r['avg_ts']:.0f} ({r['model_share']:.0%})" for r in (pp, tg)]
        cells.append(
            [name, f"{pp['bits_per_weight']:.2f}", f"{pp['model_size'] / 1e6:.0f}", *shares, f"{tg['gbps']:.0f}"]
        )
    first, pp = records[0], next(iter(rows.values()))["pp"]
    gbps, gmacs = ([r[key] for r in records] for key in ("roof_gbps", "roof_gmacs"))
    text = (
        f"{first['model_type'].rpartition(' ')[0]}, {first['cpu_info']} ({first['target']}), {first['n_threads']} "
        f"threads, {first['test_time'][:10]}; roofs {min(gbps):.0f} to {max(gbps):.0f} GB/s, {min(gmacs):.0f} to "
        f"{max(gmacs):.0f} GMAC/s. In brackets the share of the roof: multiply-adds of the layers, bytes of the file."
    )
    head = [
        "type",
        "bits per weight",
        "MB",
        f"{pp['test']} t/s",
        f"{next(iter(rows.values()))['tg']['test']} t/s",
        "GB/s",
    ]
    return f"{text}\n\n{table(head, cells)}"


PAGES = {README: {"peer": peer, "kernels": kernels, "startup": startup}, SPEED: {"peer_*": peer, "synthetic_*": types}}

if __name__ == "__main__":
    main()
