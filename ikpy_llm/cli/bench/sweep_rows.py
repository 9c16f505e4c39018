"""Rows of a sweep: as llama-sweep-bench prints them, read again from its table or jsonl, and side by side."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from ikpy_llm.errors import IkpyError

TITLES = ("PP", "TG", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s")
KEYS = ("pp", "tg", "n_kv", "t_pp", "speed_pp", "t_tg", "speed_tg")
MEMORY = ("RSS HWM", "VRAM delta")
MOST_CHARACTERS = 64 << 20  # of a file of results; a device has no end
# What tells runs apart in a legend, and how it reads there.
TOLD = {
    "model": "{}",
    "kv": "{} KV",
    "n_ubatch": "-ub {}",
    "n_threads": "-t {}",
    "n_threads_batch": "-tb {}",
    "flash_attn": "-fa {}",
    "repack": "-rtr {}",
    "machine": "{}",
}


@dataclass
class Run:
    """One sweep: the name of its file, rows with KEYS (and roof_pp, bound_pp, ... in t/s), and `facts` for TOLD."""

    name: str
    rows: list[dict]
    facts: dict[str, object]


def facts_of(fields: dict) -> dict[str, object]:
    """What TOLD wants of a head or a line of jsonl, ours or ik_llama.cpp's."""
    out = {key: fields[key] for key in TOLD if key in fields}
    if out.get("n_threads_batch") == out.get("n_threads"):
        out.pop("n_threads_batch", None)
    if "model_filename" in fields:
        out["model"] = Path(str(fields["model_filename"])).stem
    if "machine" in fields:
        out["machine"] = str(fields["machine"]).partition(";")[0]  # without versions and load
    if "type_k" in fields:
        k, v = fields["type_k"], fields.get("type_v", fields["type_k"])
        out["kv"] = k if k == v else f"{k}/{v}"
    return out


def labels(runs: list[Run]) -> list[str]:
    """A name for each run: in what it differs from others, else its file's name; none twice."""
    several = [key for key in TOLD if len({str(run.facts.get(key)) for run in runs}) > 1]
    told = [", ".join(TOLD[key].format(run.facts[key]) for key in several if key in run.facts) for run in runs]
    return [text if text and told.count(text) == 1 else f"{run.name}" for run, text in zip(runs, told, strict=True)]


def in_common(runs: list[Run]) -> dict[str, object]:
    """The facts that are the same in all runs."""
    first = runs[0].facts
    return {k: first[k] for k in TOLD if k in first and all(run.facts.get(k) == first[k] for run in runs)}


def by_depth(rows: list[dict], key: str) -> dict[int, list[float]]:
    """Values of a column by n_kv, in its order; several where a depth was measured more than once."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["n_kv"]):
        if row.get(key) is not None:
            found.setdefault(row["n_kv"], []).append(row[key])
    return found


def limits(rows: list[dict], kind: str) -> list[tuple[int, float, float]]:
    """(n_kv, tokens per second at the lowest and at the highest rates of the machine in these rows) by depth; [] where
    the rows have no roofs. Prompts (kind "pp") follow the rate of products, generation ("tg") that of reading.
    """
    rate, bound = {"pp": "roof_gmacs", "tg": "roof_gbps"}[kind], f"bound_{kind}"
    bound = bound if any(row.get(bound) for row in rows) else f"roof_{kind}"
    known = sorted((r for r in rows if r.get(bound) and r.get(rate)), key=lambda r: r["n_kv"])
    if not known:
        return []
    rates = [row[rate] for row in known]
    return [(row["n_kv"], *(row[bound] * at / row[rate] for at in (min(rates), max(rates)))) for row in known]


# --- what is printed ---


def print_head(head: dict, where: dict, memory: bool) -> None:
    """llama-sweep-bench's head, with lines about model, machine and roofs."""
    print("\nmain: " + ", ".join(f"{name} = {value}" for name, value in head.items()))
    print(f"main: {where['model_filename']}; {where['machine']}")
    if "type_k" in where:
        print("main: " + ", ".join(f"{name} = {where[name]}" for name in ("type_k", "type_v")))
    if "roof_gbps" in where:
        print(f"main: roofs: {where['roof_gbps']:.1f} GB/s read, {where['roof_gmacs']:.0f} GMAC/s int8")
    print()
    widths = [6, 6, 6, 8, 8, 8, 8] + [10, 10] * memory
    titles = TITLES + MEMORY * memory
    print("|" + " | ".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (w + 1 + (i > 0)) for i, w in enumerate(widths)) + "|", flush=True)


def table_row(row: dict) -> str:
    """A row in llama-sweep-bench's widths."""
    text = "|{pp:6d} | {tg:6d} | {n_kv:6d} | {t_pp:8.3f} | {speed_pp:8.2f} | {t_tg:8.3f} | {speed_tg:8.2f} |"
    if "rss_hwm_mib" in row:
        text += f" {'n/a' if row['rss_hwm_mib'] is None else format(row['rss_hwm_mib'], '.1f'):>10} | {'n/a':>10} |"
    return text.format(**row)


def json_row(fields: dict) -> str:
    """A line of jsonl: floats with six decimals, a space before the brace."""
    parts = (f'"{k}": {f"{v:.6f}" if isinstance(v, float) else json.dumps(v)}' for k, v in fields.items())
    return "{" + ", ".join(parts) + " }"


def comparison(runs: list[Run]) -> str:
    """Both speeds of all runs side by side, and how much faster each is than the first at the same depth."""
    lines = [f"{letter} = {name}" for letter, name in zip("abcdefghijklmnopqrstuvwxyz", labels(runs), strict=False)]
    kinds = ("speed_pp", "PP"), ("speed_tg", "TG")
    columns = [(run, key, f"{title} {chr(97 + i)}") for key, title in kinds for i, run in enumerate(runs)]
    lines += ["", "|   N_KV | " + " | ".join(f"{title:>17}" for *_, title in columns) + " |"]
    lines.append("|-------:|" + "|".join("-" * 18 + ":" for _ in columns) + "|")
    for depth in sorted({row["n_kv"] for run in runs for row in run.rows}):
        cells = []
        for run, key, _ in columns:
            value, first = (by_depth(r.rows, key).get(depth) for r in (run, runs[0]))
            text = "" if value is None else f"{statistics.fmean(value):.2f}"
            if value and first and run is not runs[0]:
                text += f" {statistics.fmean(value) / statistics.fmean(first) - 1:+8.1%}"
            elif value:
                text += " " * 9
            cells.append(f"{text:>17}")
        lines.append(f"| {depth:6d} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- what is read again ---


def read_run(path: str) -> Run:
    """An earlier sweep, ours or ik_llama.cpp's: jsonl, or the table among whatever lines."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(MOST_CHARACTERS).splitlines()
    except (OSError, ValueError) as error:
        raise IkpyError(f"--compare {path}: {getattr(error, 'strerror', None) or error}") from None
    rows, fields = [], {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("{"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and all(_is_number(row.get(key)) for key in KEYS):
                rows.append(row)
                fields = {**row, **fields}
        elif line.startswith("|") and len(cells) >= len(KEYS) and all(re.fullmatch(r"[\d.]+", c) for c in cells[:7]):
            values = [int(c) if i < 3 else float(c) for i, c in enumerate(cells[:7])]
            rows.append(dict(zip(KEYS, values, strict=True)))
        elif line.startswith("main: "):
            fields |= _head_line(line.removeprefix("main: "))
    if not rows:
        raise IkpyError(f"--compare {path}: no rows of a sweep; the table or jsonl of a sweep-bench is accepted")
    return Run(Path(path).stem, rows, facts_of(fields))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _head_line(text: str) -> dict:
    """`name = value, ...`, or `model; machine; ...`"""
    if found := re.findall(r"(\w+) = ([^,]+)", text):
        return {name: int(value) if value.isdigit() else value for name, value in found}
    model, semicolon, machine = text.partition("; ")
    return {"model_filename": model, "machine": machine} if semicolon else {}
