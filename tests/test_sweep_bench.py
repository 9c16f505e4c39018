"""`ikpy-sweep-bench`: llama-sweep-bench's table and jsonl, read back again, and its picture."""

import io
import json
import re

import pytest
import tiny_model
from conftest import ROOT

from ikpy_llm import cli
from ikpy_llm.cli import console
from ikpy_llm.cli.bench import sweep_rows
from ikpy_llm.cli.commands import sweep_bench
from ikpy_llm.engine.file import hub
from ikpy_llm.engine.step.workers import Workers
from ikpy_llm.errors import IkpyError

HEAD = [
    "|    PP |     TG |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |",
    "|-------|--------|--------|----------|----------|----------|----------|",
]
ROW = {"pp": 64, "tg": 4, "n_kv": 0, "t_pp": 0.0949, "speed_pp": 674.19, "t_tg": 0.0337, "speed_tg": 118.85}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


def sweep(ikpy, model, *words):
    done = ikpy("sweep-bench", "-m", model, "-c", "256", "-ub", "64", "-t", "1", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rows_in_the_peers_widths(capsys):
    assert sweep_rows.table_row(ROW) == "|    64 |      4 |      0 |    0.095 |   674.19 |    0.034 |   118.85 |"
    with_memory = sweep_rows.table_row(ROW | {"rss_hwm_mib": 12.345, "vram_delta_mib": None})
    assert with_memory.endswith("|   118.85 |       12.3 |        n/a |")
    assert sweep_rows.json_row(ROW) == (
        '{"pp": 64, "tg": 4, "n_kv": 0, "t_pp": 0.094900, "speed_pp": 674.190000, "t_tg": 0.033700, '
        '"speed_tg": 118.850000 }'
    )
    sweep_rows.print_head({"n_kv_max": 256}, {"model_filename": "m", "machine": "cpu"}, True)
    assert capsys.readouterr().out.splitlines()[4:] == [
        HEAD[0] + "    RSS HWM | VRAM delta |",
        HEAD[1] + "------------|------------|",
    ]


def test_table(ikpy, model, tmp_path):
    text = sweep(ikpy, model)
    empty, main, machine, types, roofs, blank, *table = text.splitlines()
    assert (empty, blank, table[:2]) == ("", "", HEAD)
    assert main == (
        "main: n_kv_max = 256, n_batch = 2048, n_ubatch = 64, flash_attn = 1, n_gpu_layers = -1, n_threads = 1, "
        "n_threads_batch = 1"
    )
    assert "load average" in machine and types == "main: type_k = f16, type_v = f16"
    assert re.fullmatch(r"main: roofs: [\d.]+ GB/s read, \d+ GMAC/s int8", roofs)
    assert [line[:27] for line in table[2:]] == [f"|    64 |     16 | {n:6} |" for n in (0, 64, 128, 192)]
    file = tmp_path / "run.md"
    file.write_text(text)
    run = sweep_rows.read_run(str(file))
    assert [row["n_kv"] for row in run.rows] == [0, 64, 128, 192] and all(row["speed_tg"] > 0 for row in run.rows)
    facts = {"model": "tiny", "kv": "f16", "n_ubatch": 64, "n_threads": 1, "flash_attn": 1}
    assert run.facts == facts | {"machine": machine.split("; ")[1]}


def test_jsonl_and_its_options(ikpy, model, tmp_path):
    words = ["-n", "2", "-nrep", "2", "--sweep-stride", "2", "--sweep-memory", "-wb", "-o", "jsonl"]
    text = sweep(ikpy, model, *words)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(r["tg"], r["n_kv"]) for r in rows] == [(2, 0), (2, 0), (2, 128)]
    head = "n_kv_max n_batch n_ubatch flash_attn n_gpu_layers n_threads n_threads_batch"
    assert list(rows[0])[:14] == [*head.split(), *sweep_rows.KEYS]
    assert all(row["roof_" + x] > 0.99 * row["bound_" + x] > 0 for row in rows for x in ("pp", "tg"))
    assert len({row["roof_gbps"] for row in rows}) == 3 and rows[0]["roof_gmacs"] > 0
    assert text.splitlines()[0].endswith(" }") and rows[0]["rss_hwm_mib"] > 10 and rows[0]["vram_delta_mib"] is None


def test_pictures_of_several_runs(ikpy, model, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "a.jsonl").write_text(sweep_rows.json_row(ROW) + "\n" + sweep_rows.json_row(ROW | {"n_kv": 64}) + "\n")
    (tmp_path / "b.md").write_text("\n".join([*HEAD, sweep_rows.table_row(ROW)]))
    words = ["--compare", "a.jsonl", "b.md", "--plot", "both.png"]
    done = ikpy("sweep-bench", *words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "both.png").read_bytes()[:4] == b"\x89PNG"
    sweep(ikpy, model, "-n", "1", "--plot", tmp_path / "own.png", "--compare", tmp_path / "a.jsonl")
    assert (tmp_path / "own.png").read_bytes()[:4] == b"\x89PNG"


def a_run(name, **facts):
    rows = [ROW, ROW | {"n_kv": 64, "speed_pp": 500.0}, ROW | {"n_kv": 64, "speed_pp": 520.0}]
    return sweep_rows.Run(name, rows, sweep_rows.facts_of(facts))


def test_names_tell_runs_apart():
    runs = [a_run("x", type_k="f16", type_v="f16", n_threads=2, model_filename="/m/a.gguf")]
    assert sweep_rows.labels(runs) == ["x"]
    runs.append(a_run("y", type_k="q8_0", type_v="q4_0", n_threads=2, n_threads_batch=2, model_filename="a.gguf"))
    assert sweep_rows.labels(runs) == ["f16 KV", "q8_0/q4_0 KV"]
    assert sweep_rows.in_common(runs) == {"model": "a", "n_threads": 2}
    runs.append(a_run("z", type_k="f16", n_threads=1, n_threads_batch=2, model_filename="b.gguf"))
    assert sweep_rows.labels(runs)[1:] == ["a, q8_0/q4_0 KV, -t 2", "b, f16 KV, -t 1, -tb 2"]
    assert sweep_rows.labels([a_run("before"), a_run("after")]) == ["before", "after"]


def test_runs_side_by_side(tmp_path, capsys):
    (tmp_path / "a.md").write_text("\n".join([*HEAD, sweep_rows.table_row(ROW)]))
    fast = [ROW | {"speed_pp": 800.0}, ROW | {"speed_pp": 900.0, "n_kv": 64}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(sweep_rows.json_row, fast)) + '\n{"pp": true}\n')
    sweep_bench.main(sweep_bench.Options(compare=[str(tmp_path / "a.md")], files=[str(tmp_path / "b.jsonl")]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["a = a", "b = b"] and len({len(line) for line in lines[3:]}) == 1
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["N_KV", "PP a", "PP b", "TG a", "TG b"]
    cells = [[cell.split() for cell in line.split("|")[1:-1]] for line in lines[5:]]
    assert cells[0] == [["0"], ["674.19"], ["800.00", "+18.7%"], ["118.85"], ["118.85", "+0.0%"]]
    assert cells[1] == [["64"], [], ["900.00"], [], ["118.85"]]


def test_progress_is_drawn_on_terminals_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for out, expected in ((Terminal(), True), (io.StringIO(), False)):
        bar = console.Bar(out)
        bar.show(0, 4, "N_KV 0")
        bar.show(2, 4, "N_KV 128")
        bar.clear()
        text = out.getvalue()
        assert ("━" * 15 + "╌" * 15 + " 2/4 N_KV 128, 0:00 left" in text) == expected == text.endswith("\r\033[K")


def test_threads_of_prompts_and_a_model_of_the_hub(model, monkeypatch, capsys):
    monkeypatch.setattr(hub, "resolve", lambda name, *_, **__: {"u/r:Q8_0": model}[name])
    used, run = [], Workers.run
    monkeypatch.setattr(Workers, "run", lambda pool, *words: (used.append(pool.n_threads), run(pool, *words))[1])
    words = "-hf u/r:Q8_0 -t 1 -tb 2 -c 256 -ub 128 -n 1 --swa-full -o jsonl"
    assert cli.main(words.split(), "sweep-bench") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["n_kv"], row["n_threads"], row["n_threads_batch"]) for row in rows] == [(0, 1, 2), (128, 1, 2)]
    assert used[-4:] == [1, 2, 1, 2]


def test_errors(tmp_path):
    (tmp_path / "odd.md").write_text("no table\n{not json\n| a | b |\n")
    with pytest.raises(IkpyError, match="no rows of a sweep"):
        sweep_rows.read_run(str(tmp_path / "odd.md"))
    with pytest.raises(IkpyError, match="No such file"):
        sweep_rows.read_run(str(tmp_path / "none.md"))
    with pytest.raises(IkpyError, match=r"x\.md: result files follow --compare"):
        sweep_bench.main(sweep_bench.Options(files=["x.md"]))


def test_the_peers_program_name(capsys):
    assert cli.main(["x.md"], "sweep-bench") == 1
    assert "x.md: result files follow --compare" in capsys.readouterr().err


def test_limits_at_the_lowest_and_highest_rates():
    """What each row allows at its own rates, at those of the whole run; bounds where there are any."""
    rows = [
        {"n_kv": 512, "roof_tg": 40.0, "bound_tg": 30.0, "roof_gbps": 60.0, "roof_pp": 90.0, "roof_gmacs": 200.0},
        {"n_kv": 0, "roof_tg": 50.0, "bound_tg": 40.0, "roof_gbps": 20.0, "roof_pp": 100.0, "roof_gmacs": 100.0},
    ]
    assert sweep_rows.limits(rows, "tg") == [(0, 40.0, 120.0), (512, 10.0, 30.0)]
    assert sweep_rows.limits(rows, "pp") == [(0, 100.0, 200.0), (512, 45.0, 90.0)]
    assert sweep_rows.limits([{"n_kv": 0, "speed_tg": 1.0}], "tg") == []
