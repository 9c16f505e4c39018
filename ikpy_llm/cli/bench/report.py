"""Benchmark results as llama-bench prints them: md, csv, json, jsonl and sql, for the scripts that read those."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection

from ikpy_llm.cli.bench.result import RATES, Result, mean_and_deviation, record, samples

# (title, field, width; negative = left aligned). Where llama.cpp differs, its title and width follow.
COLUMNS = (
    ("model", "model_type", -30),
    ("size", "model_size", 10),
    ("params", "model_n_params", 10),
    ("backend", "backend", -10),
    ("threads", "n_threads", 7),
    ("n_batch", "n_batch", 7),
    ("n_ubatch", "n_ubatch", 8),
    ("mla", "mla_attn", 3),
    ("amb", "attn_max_batch", 5),
    ("ser", "ser", 10),
    ("rtr", "repack", 3),
    ("test", "test", 13),
    ("t/s", "t/s", 16),
    ("GB/s", "gbps", 7),
    ("GMAC/s", "gmacs", 7),
    ("roof", "roof_share", 6),
    ("bound", "bound_share", 6),
)
LLAMA = {"repack": ("rpk", 3), "test": ("test", 15), "t/s": ("t/s", 20)}
MEASURED = ("gbps", "gmacs", "roof_share", "bound_share")  # shown with --roofline
OPTIONAL = {"n_batch", "n_ubatch", "mla_attn", "attn_max_batch", "ser", "repack", *MEASURED}


class Writer:
    """Prints results one by one as they come. `shown`: OPTIONAL columns of the md table; `compat`: ik or llama."""

    def __init__(self, build: str, shown: Collection[str] = (), compat: str = "ik", out=None):
        self.build, self.shown, self.compat, self.out, self.rows = build, shown, compat, out or sys.stdout, 0

    def add(self, result: Result) -> None:
        """Print a result, before the first one the head."""
        if not self.rows:
            self.head(result)
        self.row(result)
        self.rows += 1
        self.out.flush()

    def head(self, result: Result) -> None:
        """What stands before the first result."""

    def row(self, result: Result) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """What stands after the last result."""

    def print(self, *words, sep: str = "", end: str = "\n") -> None:
        print(*words, sep=sep, end=end, file=self.out)


# --- md ---


class Markdown(Writer):
    """llama-bench's table."""

    def head(self, result: Result) -> None:
        self.columns = [self._column(*c) for c in COLUMNS if c[1] not in OPTIONAL or c[1] in self.shown]
        self.print(_line([c[0] for c in self.columns], self.columns))
        rule = ("-" * (abs(width) - 1) + ("-" if width < 0 else ":") for _, _, width in self.columns)
        self.print("| ", " | ".join(rule), " |")

    def _column(self, title: str, name: str, width: int) -> tuple[str, str, int]:
        if self.compat == "llama" and name in LLAMA:
            title, width = LLAMA[name]
        return title, name, width

    def row(self, result: Result) -> None:
        self.print(_line([_cell(result, c[1]) for c in self.columns], self.columns))

    def end(self) -> None:
        if self.rows:
            self.print(f"\nbuild: {self.build} (0)")


def _line(cells: list[str], columns) -> str:
    padded = (f"{x:<{-c[2]}}" if c[2] < 0 else f"{x:>{c[2]}}" for x, c in zip(cells, columns, strict=True))
    return f"| {' | '.join(padded)} |"


def _cell(r: Result, name: str) -> str:
    if name == "backend":
        return "CPU"
    if name == "model_size":
        return f"{r.model_size / 2**20:.2f} MiB" if r.model_size < 2**30 else f"{r.model_size / 2**30:.2f} GiB"
    if name == "model_n_params":
        return f"{r.model_n_params / 1e6:.2f} M" if r.model_n_params < 1e9 else f"{r.model_n_params / 1e9:.2f} B"
    if name == "t/s":
        return "{:.2f} ± {:.2f}".format(*mean_and_deviation(r.samples_ts))
    if name in RATES:
        value = r.rates().get(name)
        return "" if value is None else f"{value:.1%}" if name.endswith("_share") else f"{value:.1f}"
    value = getattr(r, name)
    return str(int(value)) if isinstance(value, bool) else str(value)


# --- records ---


class Json(Writer):
    """llama-bench's list of records: a field per line, samples on one line."""

    def row(self, result: Result) -> None:
        fields = _with_profile(record(result, self.build, self.compat) | samples(result), result)
        text = ",\n".join(f'    "{name}": {_json(value)}' for name, value in fields.items())
        self.print(",\n" if self.rows else "[\n", "  {\n", text, "\n  }", end="")

    def end(self) -> None:
        self.print("\n]" if self.rows else "[]")


class Jsonl(Writer):
    """A record per line, in the spacing of llama.cpp."""

    def row(self, result: Result) -> None:
        fields = _with_profile(record(result, self.build, self.compat), result)
        text = ", ".join(f'"{name}": {_json(value)}' for name, value in fields.items())
        lists = ",".join(f'"{name}": {_json(value)}' for name, value in samples(result).items())
        self.print("{", text, ", ", lists, "}")


class Csv(Writer):
    """Names bare, every value quoted, switches as 0 and 1."""

    def head(self, result: Result) -> None:
        self.print(",".join(record(result, self.build, self.compat)))

    def row(self, result: Result) -> None:
        values = (_text(value).replace('"', '""') for value in record(result, self.build, self.compat).values())
        self.print(",".join(f'"{value}"' for value in values))


class Sql(Writer):
    """Statements for sqlite3: a table, then a row per result."""

    @property
    def table(self) -> str:
        return {"ik": "test", "llama": "llama_bench"}[self.compat]

    def head(self, result: Result) -> None:
        fields = record(result, self.build, self.compat)
        columns = ",\n".join(f"  {name} {_sql_type(name, value)}" for name, value in fields.items())
        self.print(f"CREATE TABLE IF NOT EXISTS {self.table} (\n{columns}\n);\n")

    def row(self, result: Result) -> None:
        fields = record(result, self.build, self.compat)
        values = ", ".join("NULL" if v is None else "'" + _text(v).replace("'", "''") + "'" for v in fields.values())
        self.print(f"INSERT INTO {self.table} ({', '.join(fields)}) VALUES ({values});")


FORMATS = {"md": Markdown, "csv": Csv, "json": Json, "jsonl": Jsonl, "sql": Sql}


def _with_profile(fields: dict, result: Result) -> dict:
    return fields | ({"profile": result.profile} if result.profile else {})


def _json(value) -> str:
    """llama-bench's spelling: six decimals, spaces inside brackets."""
    if isinstance(value, list):
        return f"[ {', '.join(_json(v) for v in value)} ]"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6f}"
    return json.dumps(value, ensure_ascii=False)


def _text(value) -> str:
    """A value for csv and sql."""
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)


def _sql_type(name: str, value) -> str:
    if name in (*RATES, "bits_per_weight") or isinstance(value, float):
        return "REAL"
    return "INTEGER" if isinstance(value, (bool, int)) else "TEXT"
