"""`ikpy-bench`: its tests and their order, the formats scripts for llama-bench read, synthetic models, pictures."""

import csv
import io
import json
import math
import os
import sqlite3
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_deepseek2
import tiny_model

from ikpy_llm.cli import options as cli_options
from ikpy_llm.cli.bench import plot, report, run
from ikpy_llm.cli.bench import result as bench_result
from ikpy_llm.cli.bench.result import Result, Test
from ikpy_llm.cli.commands import bench
from ikpy_llm.cli.options import Pair, parse
from ikpy_llm.engine.file import hub
from ikpy_llm.engine.measure.need import Need
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.derive import roof
from ikpy_llm.kernels.kv.types import KV_TYPES

ROOF = {"gbps": 50.0, "gmacs": 1000.0, "gmacs_f32": 100.0}
ROOFS = {"roofs": [ROOF, ROOF], "needs": [Need(10**9, 10**10, 10**8, {"gmacs_f32": 10**9})]}
MACHINE = {"cpu_info": "cpu", "target": "avx512", "cores_allowed": 2, "memory_gib": 23.5, "load_average": 0.5}


def options(*words):
    found = parse(bench.Options, words, "ikpy-bench", environ={})
    bench.check(found)
    return found


def names(*words):
    return [test.name for test in bench.tests_of(options(*words))]


# --- which tests ---


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["pp512", "tg128"]),
        (["-p", "0"], ["tg128"]),
        (["-n", "0", "-p", "8-32*2,5"], ["pp8", "pp16", "pp32", "pp5"]),
        (["-n", "0", "-p", "8-10", "-p", "16-32+8"], ["pp8", "pp9", "pp10", "pp16", "pp24", "pp32"]),
        (["-pg", "8,4;16,2", "-pg", "1,1"], ["pp8+tg4", "pp16+tg2", "pp1+tg1"]),
        (["-gp", "16,4"], ["tg4@pp16"]),
        (["-pg", "8,4", "-n", "2", "-p", "0"], ["tg2", "pp8+tg4"]),
        (["-p", "8", "-n", "4", "-d", "0,512"], ["pp8", "tg4", "pp8 @ d512", "tg4 @ d512"]),
        (["--synthetic", "tiny"], ["pp512", "tg64"]),
    ],
)
def test_names(words, expected):
    assert names(*words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-p", "9-8"], "'9-8' is not a range such as 8-32"),
        (["-p", "8-16*1"], "'8-16*1' is not a range"),
        (["-t", "1023-1025"], "-t: '1025' is not a whole number up to 1024"),
        (["-pg", "8"], "-pg: '8' is not two whole numbers such as 512,128"),
        (["-rtr", "2"], "-rtr: '2' is not one of on, off, 1, 0"),
        (["-ctk", "q9_0"], "-ctk: 'q9_0' is not one of f32, f16, bf16, q8_0, q8_KV, q6_0, q5_1"),
        (["-ctv", "f16,q4_K"], "-ctv: 'q4_K' is not one of"),
        (["--type", "Q4_0"], "--type needs --synthetic SIZE"),
        (["--plot", "x.png"], "--plot needs --synthetic"),
        (["--synthetic", "0.4B", "-m", "x.gguf"], "exclude each other"),
        (["-o", "yaml"], "-o: 'yaml' is not one of md, csv, json, jsonl, sql"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(IkpyError) as error:
        bench.tests_of(options(*words))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_combination_in_order():
    found = options(
        "-m", "a,b", "-t", "1,2", "-tgb", "3,4", "-ub", "8", "-b", "4,16", "-p", "8", "-n", "2", "-rtr", "0,1"
    )
    setups = list(bench.setups_of(found, bench.tests_of(found)))
    assert len(setups) == 2 * 2 * 2 * (1 + 1 + 1)
    first = [s for s, *_ in setups[:3]]
    assert [(s.source, s.threads, s.threads_batch, s.n_ubatch, s.repack) for s in first] == [
        ("a", 1, 1, 4, False),
        ("a", 2, 2, 4, False),
        ("a", 3, 4, 4, False),
    ]
    assert all([t.name for t in some] == ["pp8", "tg2"] for *_, some in setups)
    assert {s.source for s, *_ in setups[:12]} == {"a"}
    pairs = [(s.threads, s.threads_batch) for s, *_ in bench.setups_of(options("-t", "1,2", "-tb", "3,4"), [])]
    assert pairs == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert [(s.threads, s.threads_batch) for s, *_ in bench.setups_of(options("-tb", "3"), [])] == [(0, 3)]
    assert found.threads_pairs == [Pair(3, 4)] and options("-rtr").repack == [True] == options("--repack").repack
    assert options("-no-rtr").repack == [False]


def test_models_of_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "resolve", lambda *words, **more: asked.append((words, more)) or f"{words[0]}.gguf")
    found = bench.sources_of(options("-m", "a.gguf", "-hf", "u/r:Q4_0,v/s", "-hft", "T", "--offline"))
    assert found == ["a.gguf", "u/r:Q4_0.gguf", "v/s.gguf"]
    assert asked == [((name, None), {"token": "T", "offline": True}) for name in ("u/r:Q4_0", "v/s")]
    assert bench.sources_of(options("-hf", "u/r", "-hff", "x.gguf")) == ["u/r.gguf"]
    assert asked[-1][0] == ("u/r", "x.gguf")
    assert bench.sources_of(options("-mu", "https://huggingface.co/u/r/resolve/main/y.gguf")) == ["u/r.gguf"]
    assert asked[-1][0] == ("u/r", "y.gguf") and bench.sources_of(options()) == [None]
    for words, part in ((["-hff", "x"], "needs -hf"), (["-hff", "x", "-hf", "u/r,v/s"], "needs one -hf, not 2")):
        with pytest.raises(IkpyError, match=part):
            bench.sources_of(options(*words))


def test_caches_are_lists_too():
    found = options("-fa", "0,1", "-ctk", "q8_0,f16", "-ctv", "q4_0", "-khad", "1")
    setups = [setup.cache for setup, *_ in bench.setups_of(found, bench.tests_of(found))]
    fields = [(c.cache_type_k, c.cache_type_v, c.khad, c.vhad, c.flash_attn) for c in setups]
    assert fields == [(k, "q4_0", True, False, fa) for k in ("q8_0", "f16") for fa in (False, True)]
    assert options("-fa").flash_attn == ["on"] and options("-khad").khad == [True]


def test_types_of_the_cache_are_the_kernels():
    assert tuple(KV_TYPES) == cli_options.KV_TYPES


# --- how results are written ---


def a_result(test=None, **changes):
    values = {
        "model_filename": "m.gguf", "model_type": "llama ?B Q4_1", "model_size": 126657331, "model_n_params": 162826560,
        "n_batch": 2048, "n_ubatch": 512, "n_threads": 1, "repack": True, "run": test or Test(8, 0),
        "test_time": "2026-01-01T00:00:00Z", "bytes": 10**9, "macs": 10**10, "layer_macs": 10**9, "machine": MACHINE,
        "seconds": [0.02, 0.04],
    }  # fmt: skip
    return Result(**values | changes)


def printed(kind, *results, **how):
    writer = report.FORMATS[kind]("x", out=(out := io.StringIO()), **how)
    for result in results:
        writer.add(result)
    writer.end()
    return out.getvalue()


def test_markdown_is_that_of_llama_bench():
    rows = [
        "| model                          |       size |     params | backend    "
        "| threads |          test |              t/s |",
        "| ------------------------------ | ---------: | ---------: | ---------- "
        "| ------: | ------------: | ---------------: |",
        "| llama ?B Q4_1                  | 120.79 MiB |   162.83 M | CPU        "
        "|       1 |       pp8+tg4 |    230.02 ± 0.00 |",
        "| llama ?B Q4_1                  | 120.79 MiB |   162.83 M | CPU        "
        "|       1 |      tg4@pp16 |   150.00 ± 70.71 |",
    ]
    text = printed("md", a_result(Test(8, 4), seconds=[12 / 230.02]), a_result(Test(16, 4, gen_only=True)))
    assert text.splitlines() == [*rows, "", "build: x (0)"]


def test_markdown_of_llama_cpp_is_wider():
    head, _, row, *_ = printed("md", a_result(), shown={"repack"}, compat="llama").splitlines()
    assert head.endswith("| threads | rpk |            test |                  t/s |")
    assert row.endswith("|       1 |   1 |             pp8 |      300.00 ± 141.42 |")


def test_markdown_shows_what_is_asked_for():
    shown = {"n_ubatch", "repack", "gbps", "gmacs", "roof_share", "bound_share"}
    head, _, row, *_ = printed("md", a_result(repack=False, n_ubatch=64, **ROOFS), shown=shown).splitlines()
    assert "| threads | n_ubatch | rtr |          test |" in head and "n_batch" not in head
    assert "|       1 |       64 |   0 |" in row
    assert head.endswith("|    GB/s |  GMAC/s |   roof |  bound |")
    assert row.endswith("|    33.3 |   333.3 |  75.0% | 112.5% |")


def test_json_records():
    found = bench_result.record(a_result(**ROOFS), "b")
    assert list(found)[:3] == ["build_commit", "build_number", "cuda"] and list(found)[53] == "test"
    assert list(found)[54:58] == ["n_depth", "weight_type", "bits_per_weight", "gbps"]
    assert (found["target"], found["cores_allowed"], found["load_average"]) == ("avx512", 2, 0.5)
    text = printed("json", a_result(**ROOFS), a_result(profile={"seconds": 1.5}))
    assert text.startswith('[\n  {\n    "build_commit": "x",\n    "build_number": 0,\n    "cuda": false,\n')
    assert '"samples_ns": [ 20000000, 40000000 ],\n    "samples_ts": [ 400.000000, 200.000000 ],\n' in text
    first, second = json.loads(text)
    assert first["avg_ts"] == 300.0 and first["stddev_ts"] == pytest.approx(141.421356)
    assert first["roof_share"] == pytest.approx(0.75) and first["rpc"] == "0"
    assert first["model_share"] == pytest.approx(300 * 10**9 / 1e9 / 1000)
    assert first["samples_share"] == [1.0, 0.5] and first["samples_roof_gbps"] == [50.0, 50.0]
    assert second["roof_gbps"] is None and second["profile"] == {"seconds": 1.5} and "samples_share" not in second


def test_shares_are_those_of_repetitions():
    """Each with the roofs beside it: what needs 20 ms of weights at 50 GB/s and 10 ms of products besides."""
    slow = {"gbps": 25.0, "gmacs": 500.0, "gmacs_f32": 50.0}
    result = a_result(seconds=[0.02, 0.06, 0.05], roofs=[ROOF, slow, ROOF], needs=ROOFS["needs"])
    assert result.samples_share == pytest.approx([1, 2 / 3, 0.4])
    assert result.samples_bound_share == pytest.approx([1.5, 1, 0.6])
    rates = result.rates()
    assert (rates["roof_share"], rates["bound_share"]) == pytest.approx((2 / 3, 1)) and rates["roof_gbps"] == 50
    ran = {"clock": 0}

    def measure():
        ran["clock"] += 1
        return {"gbps": float(ran["clock"])}

    result, session = a_result(Test(0, 1), seconds=[]), SimpleNamespace(n_vocab=9, position=0, rewind=lambda _: None)
    session.eval = lambda ids: ran.update(clock=ran["clock"] + 10)
    run.run_test(session, result, 2, True, lambda *_: None, SimpleNamespace(measure=measure))
    assert result.roofs == [{"gbps": (11 + 22) / 2}, {"gbps": (22 + 33) / 2}] and len(result.seconds) == 2


def test_what_a_model_with_experts_and_latents_was_run_with(tmp_path):
    path = tiny_deepseek2.write(tmp_path / "deepseek2.gguf")
    for words, mla, ser in (([], 3, "-1,0"), (["-mla", "1", "-amb", "64", "-ser", "2,0.5"], 1, "2,0.5")):
        ((setup, *_),) = bench.setups_of(options("-m", str(path), "-t", "1", *words), [])
        with setup.open(256, lambda *_: None) as session:
            result = run.describe(session, Test(0, 1), 64, 64)
        result.seconds.append(1.0)
        found = bench_result.record(result, "b")
        assert (found["mla_attn"], found["ser"], found["fused_moe"]) == (mla, ser, True)
        assert found["attn_max_batch"] == (64 if words else 256)
    head, _, row, *_ = printed("md", a_result(mla_attn=1, ser="2,0.5"), shown={"mla_attn", "ser"}).splitlines()
    assert "| threads | mla |        ser |          test |" in head and "|       1 |   1 |      2,0.5 |" in row
    found = bench_result.record(a_result(), "b")
    assert (found["mla_attn"], found["attn_max_batch"], found["ser"]) == (0, 0, "-1,0")


def test_dialect_of_llama_cpp():
    found = bench_result.record(a_result(Test(8, 0, 16)), "b", "llama")
    assert list(found)[:42] == bench_result.FIELDS["llama"] and len(set(found)) == len(found)
    assert (found["n_depth"], found["backends"], found["load_mode"]) == (16, "CPU", "none")


def test_share_of_the_model_counts_only_tests_of_one_kind():
    generation = a_result(Test(0, 4), **ROOFS).rates()
    assert generation["model_share"] == pytest.approx(150 * 126657331 / 50e9)  # 200 and 100 tokens per second
    assert "model_share" not in a_result(Test(8, 4), **ROOFS).rates()


def test_jsonl():
    first, second = printed("jsonl", a_result(), a_result(), compat="llama").splitlines()
    assert first == second and json.loads(first)["samples_ns"] == [20000000, 40000000]
    assert first.startswith('{"build_commit": "x", ') and '],"samples_ts": [ 400.0' in first


def test_csv():
    (row,) = csv.DictReader(io.StringIO(printed("csv", a_result(model_type='a "b", c'))))
    assert (row["model_type"], row["repack"], row["cuda"], row["avg_ts"]) == ('a "b", c', "1", "0", "300.000000")
    assert row["target"] == "avx512" and row["roof_gbps"] == ""


@pytest.mark.parametrize(("compat", "table"), [("ik", "test"), ("llama", "llama_bench")])
def test_sql_is_accepted_by_sqlite(compat, table):
    db = sqlite3.connect(":memory:")
    db.executescript(printed("sql", a_result(model_type="it's"), a_result(**ROOFS), compat=compat))
    rows = db.execute(f"SELECT model_type, n_prompt, repack, avg_ts, roof_gbps, n_depth FROM {table}").fetchall()
    assert rows == [("it's", 8, 1, 300.0, None, 0), ("llama ?B Q4_1", 8, 1, 300.0, 50.0, 0)]
    db.close()


def test_nothing_measured_is_valid_json():
    assert json.loads(printed("json")) == []


def test_tests_go_on_from_what_the_cache_holds():
    read = []

    def evaluate(ids):
        read.append((session.position, len(ids)))
        session.position += len(ids)

    session = SimpleNamespace(n_vocab=9, position=0, rewind=lambda n: setattr(session, "position", n), eval=evaluate)
    held = []
    for test in Test(0, 2, 5), Test(4, 0, 5), Test(3, 1, 8, gen_only=True), Test(0, 1, 2):
        run.run_test(session, a_result(test, seconds=[]), 2, False, lambda *_: None, None, held)
        assert len(held) == test.n_depth + 3 * test.gen_only
    generation, prompt, after = [(5, 1), (6, 1)], [(5, 4)], [(11, 1)]
    assert read == [(0, 5), *generation * 2, *prompt * 2, (5, 6), *after * 2, (2, 1), (2, 1)]


# --- from end to end ---


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


def test_depth_pairs_and_profile(ikpy, model):
    words = ["-p", "8", "-n", "0", "-pg", "4,2", "-gp", "4,2", "-d", "0,20", "-r", "1", "--profile", "--progress"]
    done = ikpy("bench", "-m", model, *words, "-o", "jsonl", "-oe", "md")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [name + depth for depth in ("", " @ d20") for name in ("pp8", "pp4+tg2", "tg2@pp4")]
    assert [r["test"] for r in records] == expected
    assert [(r["profile"]["n_tokens"], r["profile"]["depth"]) for r in records[3:]] == [(8, 20), (1, 24), (1, 24)]
    assert all(len(r["profile"]["limits"]) == 3 and 0 < 0.99 * r["roof_share"] < r["bound_share"] for r in records)
    assert "ikpy-bench: benchmark 6/6: tg2@pp4 @ d20" in done.stderr
    assert done.stderr.count("what limits it:\n1. ") == 6 and "| matmul ffn_down Q8_0" in done.stderr


def test_synthetic_table_json_and_picture(ikpy, tmp_path):
    pytest.importorskip("matplotlib")
    picture, words = tmp_path / "types.png", ["-p", "8", "-n", "2", "-r", "1", "--type", "q4_0,F16"]
    done = ikpy("bench", "--synthetic", "tiny", *words, "-o", "json", "-oe", "md", "--plot", picture)
    assert done.returncode == 0, done.stderr
    (head,) = (line for line in done.stderr.splitlines() if line.startswith("llama 1.18M, "))
    titles, rule, *rows = (line for line in done.stderr.splitlines() if line.startswith("| "))
    assert "load average" in head and set(rule) == set("|-: ")
    assert [
        t.strip() for t in titles.split("|")[1:-1]
    ] == "type,bits,MB,pp8 t/s,share,bound,tg2 t/s,GB/s,share,bound".split(",")
    assert [row.split()[1:6:2] for row in rows] == [["Q4_0", "4.50", "1"], ["F16", "16.00", "3"]]
    assert "\nfastest pp8: " in done.stderr and "\nshares: " in done.stderr
    assert " GMAC/s u8 x s8\n" in done.stderr and " GMAC/s f32\n" in done.stderr
    assert picture.read_bytes()[:4] == b"\x89PNG"
    records = json.loads(done.stdout)
    assert [(r["weight_type"], r["test"]) for r in records] == [(t, n) for t in ("Q4_0", "F16") for n in ("pp8", "tg2")]
    assert all(r["model_share"] > 0 and r["numba"] and r["model_filename"].startswith("synthetic-") for r in records)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--synthetic", "mamba"], "--synthetic mamba: accepted are a size such as 0.4B or 7B, tiny, moe, mla"),
        (["--synthetic", "huge"], "--synthetic huge: accepted are a size such as 0.4B"),
        (["--synthetic", "tiny", "--type", "Q9_9"], "--type Q9_9: there are "),
    ],
)
def test_synthetic_errors(ikpy, words, message):
    done = ikpy("bench", *words)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_float_weights_have_the_roof_of_float_products():
    """It counts what it multiplies; a model's roof is that of the type with most weights."""
    assert [roof.code_class(t) for t in ("F32", "F16", "BF16")] == [roof.FLOAT] * 3 != roof.code_class("Q8_0")
    n, lanes, n_sums = 40, jit.target.current().lanes, math.prod(roof.FMA_TILE)
    sink, ones = np.zeros((2, n_sums, lanes), np.float32), np.ones(8192, np.float32)
    jit.call(jit.Kernel("derive.roof.roof_fma"), ones, n * n_sums, sink, nth=2)
    assert (sink == n).all()
    matrices = [
        SimpleNamespace(name=n, type_name=t, shape=(8, 8)) for n, t in (("blk.0.a", "BF16"), ("output", "Q8_0"))
    ]
    assert run.code_class(SimpleNamespace(weights=SimpleNamespace(matrices=matrices))) == roof.FLOAT


def test_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(IkpyError, match=r"--plot needs matplotlib: pip install 'ikpy-llm\[plot\]'"):
        plot.pyplot()
    monkeypatch.setitem(sys.modules, "adjustText", None)
    with pytest.raises(IkpyError, match=r"--plot of types needs adjustText: pip install 'ikpy-llm\[plot\]'"):
        plot.adjust_text()


def test_limits_of_the_picture_are_those_of_the_roofs():
    """A token that takes 0.5 GB at 30 to 50 GB/s; 4 GMAC at 400 to 1000 GMAC/s."""
    roofs = {"samples_roof_gbps": [50.0, 30.0], "samples_roof_gmacs": [1000.0, 400.0]}
    generation = {"n_gen": 32, "gbps": 20.0, "gmacs": 1.0, "avg_ts": 40.0, **roofs}
    prompt = {"n_gen": 0, "gbps": 1.0, "gmacs": 300.0, "avg_ts": 75.0, **roofs}
    assert plot.roof_range(generation) == (60.0, 100.0) and plot.roof_range(prompt) == (100.0, 250.0)


def test_unknown_target_is_one_line(ikpy, model):
    done = ikpy("bench", "-m", model, "-p", "8", "-n", "0", env={"IKPY_TARGET": "foo"})
    assert done.returncode == 1 and done.stderr.startswith("error: IKPY_TARGET='foo': accepted are ")
    assert done.stderr.count("\n") == 1


def test_profile_of_a_run(ikpy, model, tmp_path):
    file = tmp_path / "profile.json"
    done = ikpy("run", "-m", model, "-p", "the end", "-n", "3", "--temp", "0", "--profile", file)
    assert done.returncode == 0 and "profile of prompt: a step of 6 tokens" in done.stderr, done.stderr
    assert "profile of generation: a step of 1 token after" in done.stderr and "profile" not in done.stdout
    found = json.loads(file.read_text())
    assert set(found) == {"prompt", "generation"} and found["generation"]["roof"]["gbps"] > 0
    if os.path.exists("/dev/stdout"):  # written into, after the text
        done = ikpy("run", "-m", model, "-p", "the end", "-n", "1", "--temp", "0", "--profile", "/dev/stdout")
        text, brace, rest = done.stdout.partition("{")
        assert text.startswith("the end") and set(json.loads(brace + rest)) == {"prompt", "generation"}, done.stderr


@pytest.mark.parametrize(
    "words", [["run", "-p", "x", "--profile"], ["sweep-bench", "--plot"], ["bench", "--synthetic", "tiny", "--plot"]]
)
def test_what_cannot_be_written_is_said_first(ikpy, model, tmp_path, words):
    """Not after minutes of measuring."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("adjustText")
    words = [words[0], *["-m", model] * (words[0] != "bench"), *words[1:]]
    for path, why in (
        (tmp_path / "none" / "x.png", "No such file or directory"),
        (tmp_path, "Is a directory, not a regular file"),
    ):
        done = ikpy(*words, path, timeout=60)
        assert done.returncode == 1 and done.stderr == f"error: {words[-1]} {path}: {why}\n"
