"""The tables of README and docs/speed.md, from the files in results/: prints them, or with --write puts them between
the SPEED marks there and draws docs/speed_*.png.

python benchmarks/table.py [--write]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from ikpy_llm import files
from ikpy_llm.cli.bench import plot

RESULTS = Path(__file__).parent / "results"
# Types of the short table: those that files on the hub have most often, and one of each family.
POPULAR = "Q4_0 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS IQ3_S IQ4_XS IQ2_K IQ4_KS IQ5_K IQ4_KT MXFP4 BF16".split()
README, SPEED = (Path(__file__).parents[1] / name for name in ("README.md", "docs/speed.md"))
MARKS = re.compile(r"(?<=<!-- SPEED).*?(?=<!-- /SPEED -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for file, parts in PAGES.items():
        text = "\n\n".join(part([load(path) for path in sorted(RESULTS.glob(f"{name}.json"))]) for name, part in parts)
        if write:
            put(file, text)
        else:
            print(f"{file.name}\n\n{text}\n")
    if write:
        for path in sorted(RESULTS.glob("synthetic_*.json")):
            plot.types(load(path), str(SPEED.parent / path.name.replace("synthetic", "speed"))[:-4] + "png")


def put(file: Path, text: str) -> None:
    """Between the marks of a page."""
    text = f" written by benchmarks/table.py from benchmarks/results/: do not edit here -->\n{text}\n"
    files.write(file, MARKS.sub(lambda _: text, file.read_text(encoding="utf-8")).encode())


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


def speeds(records: list[dict]) -> dict[str, dict[str, dict]]:
    """Records of `ikpy-bench --synthetic -o json` by type, then by kind of test ("pp", "tg")."""
    rows: dict[str, dict[str, dict]] = {}
    for r in records:
        rows.setdefault(r["weight_type"], {})["tg" if r["n_gen"] else "pp"] = r
    return rows


def machine(records: list[dict]) -> str:
    """Model, machine, date and roofs of such records."""
    first = records[0]
    gbps, gmacs = ([r[key] for r in records] for key in ("roof_gbps", "roof_gmacs"))
    return (
        f"{first['model_type'].rpartition(' ')[0]}, {first['cpu_info']} ({first['target']}), {first['n_threads']} "
        f"threads, {first['test_time'][:10]}; roofs {min(gbps):.0f} to {max(gbps):.0f} GB/s, {min(gmacs):.0f} to "
        f"{max(gmacs):.0f} GMAC/s"
    )


def rate(r: dict) -> str:
    """Tokens per second and the share of the roof."""
    return f"{r['avg_ts']:.0f} ({r['roof_share']:.0%})"


def types(records: list[dict]) -> str:
    """A row per type, fastest generation first."""
    cells = []
    for name, row in sorted(speeds(records).items(), key=lambda item: -item[1]["tg"]["avg_ts"]):
        pp, tg = row["pp"], row["tg"]
        size = f"{pp['bits_per_weight']:.2f}", f"{pp['model_size'] / 1e6:.0f}"
        cells.append([name, *size, rate(pp), rate(tg), f"{tg['gbps']:.0f}"])
    head = ["type", "bits per weight", "MB", f"{pp['test']} t/s", f"{tg['test']} t/s", "GB/s"]
    text = f"{machine(records)}. In brackets the share of the roof: multiply-adds of prompts, bytes of generation."
    picture = f"![{records[0]['target']}: bits per weight against speed](speed_{records[0]['target']}.png)"
    return f"### {records[0]['target']}\n\n{text}\n\n{picture}\n\n{table(head, cells)}"


def beside(found: list[list[dict]]) -> str:
    """The popular types on every kind of CPU measured, side by side."""
    by_target = {records[0]["target"]: speeds(records) for records in found}
    head, rows = ["type", "bits per weight"], []
    for target, of in by_target.items():
        first = next(iter(of.values()))
        head += [f"{target} {first[kind]['test']}" for kind in ("pp", "tg")]
    for name in POPULAR:
        cells = [rate(of[name][kind]) if name in of else "" for of in by_target.values() for kind in ("pp", "tg")]
        rows.append([name, f"{next(iter(by_target.values()))[name]['pp']['bits_per_weight']:.2f}", *cells])
    where = "\n".join(f"- {machine(records)}." for records in found)
    return (
        "Tokens per second of a LLaMA of 0.4 B weights of one type, `ikpy-bench --synthetic 0.4B -r 3 -n 64`; in "
        f"brackets the share of the roof that binds. The columns are of different machines:\n\n{where}\n\n"
        f"{table(head, rows)}"
    )


def each(part):
    """A part for every file there is."""
    return lambda found: "\n\n".join(map(part, found))


PAGES = {
    README: [("synthetic_*", beside), ("startup", each(startup))],
    SPEED: [("peer_*", each(peer)), ("synthetic_*", each(types)), ("kernels", each(kernels))],
}

if __name__ == "__main__":
    main()
