"""`ikpy-bench` where not everything can be measured: what is printed is whole in every format, the error is said, and
the rest is measured; Ctrl-C in the middle."""

import csv
import io
import json
import os
import re
import sqlite3
import sys

import pytest
import tiny_model
from terminal import Terminal

from ikpy_llm.cli.bench import run
from ikpy_llm.cli.commands import bench
from ikpy_llm.cli.options import parse
from ikpy_llm.errors import IkpyError


@pytest.fixture(scope="module")
def good(folder):
    return tiny_model.write(folder / "good.gguf")


@pytest.fixture(scope="module")
def bad(folder):
    path = folder / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    return path


WORDS = "-p", "4", "-n", "2", "-r", "1"


def rows_of(form: str, text: str) -> int:
    """Results in a text of that format; an error where it is not well formed."""
    if form == "json":
        return len(json.loads(text))
    if form == "jsonl":
        return len([json.loads(line) for line in text.splitlines()])
    if form == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) <= 1
        return max(0, len(rows) - 1)
    if form == "sql":
        with sqlite3.connect(":memory:") as base:
            base.executescript(text)
            found = base.execute("SELECT count(*) FROM test").fetchone()[0] if text else 0
        base.close()
        return found
    assert not text or re.search(r"\n\nbuild: .*\n$", text)
    return len(re.findall(r"\| +(?:pp4|tg2) \|", text))


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "sql", "md"])
def test_a_bad_model_among_good_ones(ikpy, good, bad, form):
    done = ikpy("bench", "-m", good, "-m", bad, "-m", good, "-t", "1,2", *WORDS, "-o", form)
    assert done.returncode == 1 and rows_of(form, done.stdout) == 8
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "bad.gguf" in errors[0] and "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "sql", "md"])
def test_only_a_bad_model(ikpy, bad, form):
    done = ikpy("bench", "-m", bad, *WORDS, "-o", form)
    assert done.returncode == 1 and rows_of(form, done.stdout) == 0
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_an_error_in_a_test(good, capsys, monkeypatch):
    """The other tests of that model are left out, those of the next model are done."""
    ran, run_test = [], run.run_test

    def fail_once(session, result, *more):
        ran.append(result.run.name)
        if len(ran) == 1:
            raise IkpyError("non-finite value")
        run_test(session, result, *more)

    monkeypatch.setattr(run, "run_test", fail_once)
    options = parse(bench.Options, ["-m", str(good), "-t", "1,2", *WORDS, "-o", "json"], "ikpy-bench", environ={})
    assert bench.main(options) == 1
    out, err = capsys.readouterr()
    assert ran == ["pp4", "pp4", "tg2"] and len(json.loads(out)) == 2 and "error: non-finite value" in err


def test_sweep_with_a_bad_model(ikpy, bad):
    done = ikpy("sweep-bench", "-m", bad, "-c", "256", "-o", "jsonl")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
@pytest.mark.parametrize("form", ["json", "csv", "sql"])
def test_ctrl_c_in_the_middle(good, tmp_path, form):
    """What has been measured can be read."""
    out = tmp_path / "out"
    command = f'exec "$0" -m ikpy_llm bench -m {good} -p 4 -n 2,400000 -r 1 -o {form} -oe md >{out}'
    with Terminal(command=["sh", "-c", command, sys.executable]) as t:
        t.until(r"\| *tg2 \|")
        t.interrupt()
        assert t.end(60) == 130 and "Traceback" not in t.text, t.text[-2000:]
    assert rows_of(form, out.read_text(encoding="utf-8")) == 2
