"""`ikpy kernels`: every kernel is found in the sources, and one is shown as assembly, IR or source."""

import platform
import re

import pytest

from ikpy_llm.cli.commands import kernels
from ikpy_llm.errors import IkpyError

X86 = platform.machine().lower() in ("x86_64", "amd64")


def test_every_kernel_is_listed(ikpy):
    found = {k.name: k for k in kernels.kernels()}
    assert {
        "derive.gemv",
        "derive.gemm",
        "derive.pack",
        "attention.flash.attend",
        "rows.rowwise.add",
        "run.runner.work",
    } <= set(found)
    assert found["derive.gemm"].params == {"type": None, "rows_layout": "False"}
    assert all(k.about for k in found.values())
    done = ikpy("kernels")
    assert done.stdout.count("\n") == len(found) and "derive.gemv(type, n)" in done.stdout
    assert ikpy("kernels", "list", "derive").stdout.count("\n") == sum("derive" in name for name in found)


def test_of_equal_names_the_common_one_is_meant(monkeypatch):
    found = [kernels.Found(f"{module}.gemm", "", {"type": None}, "") for module in ("grouped", "derive", "z")]
    monkeypatch.setattr(kernels, "kernels", lambda: found)
    options = kernels.Options(action="show", words=["gemm", "Q4_K"])
    assert kernels.kernel_of(options)[0].name == "derive.gemm"
    with pytest.raises(IkpyError, match=r"several kernels: grouped\.gemm, z\.gemm"):
        monkeypatch.setattr(kernels, "kernels", lambda: found[::2])
        kernels.kernel_of(options)


@pytest.mark.parametrize("words", [["gemv", "Q4_0"], ["q4_0", "derive.gemv"], ["gemv", "--type", "q4_0", "n=1"]])
def test_words_in_any_order(words):
    from ikpy_llm.cli.options import parse

    options = parse(kernels.Options, ["show", *words], "ikpy-kernels", environ={})
    found, given = kernels.kernel_of(options)
    assert (found.name, {**given, "n": 1}) == ("derive.gemv", {"type": "Q4_0", "n": 1})


def test_source(ikpy):
    done = ikpy("kernels", "show", "add", "--source")
    assert done.returncode == 0 and done.stdout.startswith("def add("), done.stderr


def test_ir(ikpy):
    done = ikpy("kernels", "show", "add", "--ir")
    assert done.stdout.startswith("; rows.rowwise.add() for ") and "define void @" in done.stdout, done.stderr


@pytest.mark.parametrize(("target", "products"), [("avx512", "VNNI"), ("neon", "NEON")])
def test_assembly_and_its_counts(ikpy, target, products):
    done = ikpy("kernels", "show", "--target", target, "gemv", "Q8_0")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-6:]
    assert any(re.fullmatch(rf"(#|//) \d+ u?(int)?8.* dot products \({products}\)", line) for line in last), last
    assert re.fullmatch(r"(#|//) \d+ vectors kept on the stack \(spills\)", last[-1])


def test_counts():
    moves = "\tvmovups %zmm3, 64(%rsp)\n\tvmovups (%rsp), %xmm3\n"
    text = "f:\n\t.size x\n\t{vex} vpdpbusd %ymm1, %ymm2, %ymm0\n" + moves + "\tret\n"
    assert kernels.counts(text) == [
        "4 instructions",
        "1 u8 x s8 dot products (VNNI)",
        "2 vectors kept on the stack (spills)",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "the words name no kernel"),
        (["show", "gmev"], "gmev is neither a kernel nor a weight type; did you mean gemv?"),
        (["show", "gemm"], "derive.gemm needs type=...; types are "),
        (["show", "gemm", "--type", "Q9"], "--type Q9: no such type"),
        (["show", "gemv", "gemm"], "the words name several kernels: derive.gemv, derive.gemm"),
        (["show", "add", "speed=2"], "rows.rowwise.add(speed=2): "),
        (["show", "add", "--target", "foo"], "IKPY_TARGET='foo': accepted are "),
        (["burn"], "'burn' is not one of list, show"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_errors_are_one_line(ikpy, words, message):
    done = ikpy("kernels", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
