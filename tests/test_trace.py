"""Profiles of a step: every record is timed where it runs, times and costs add up, and the limits are said in words."""

import pytest
import tiny_llama

from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.engine.measure import trace
from ikpy_llm.engine.options import Options
from ikpy_llm.engine.step.session import Session
from ikpy_llm.models import llama

ROOF = {"gbps": 40.0, "gmacs": 500.0}


@pytest.fixture(scope="module", params=[1, 2])
def session(request, tmp_path_factory):
    path = tiny_llama.write(tmp_path_factory.mktemp("model") / "tiny.gguf", ("Q8_0", "Q4_0"))
    with Session(open_gguf(path), llama.build, Options(n_ctx=256, n_ubatch=64, threads=request.param)) as s:
        yield s


@pytest.mark.parametrize("n_tokens", [1, 40])
def test_a_profile_accounts_for_every_record(session, n_tokens):
    p = trace.profile(session, n_tokens, depth=20, repeats=3)
    program = session.program("gen" if n_tokens == 1 else "prompt")
    assert (p.n_tokens, p.depth, p.n_threads) == (n_tokens, 20, session.n_threads)
    assert sum(line.n for line in p.lines) == program.count
    assert {"matmul attn_q", "attend", "quantize"} <= {line.name for line in p.lines}
    cost = program.cost({"tokens": n_tokens, "outputs": 1}, 20)
    assert (sum(line.flops for line in p.lines), sum(line.bytes for line in p.lines)) == cost
    assert all(line.seconds > 0 and "GB/s" in str(line) for line in p.lines)
    assert sum(line.seconds for line in p.lines) + p.waiting + p.outside == pytest.approx(p.seconds, rel=1e-2)


def test_results_are_the_same_under_the_timer_and_after(session):
    session.rewind(0)
    before = session.eval([3, 5, 7])
    trace.profile(session, 3, repeats=1)
    session.rewind(0)
    assert (session.eval([3, 5, 7]) == before).all()


def test_prompts_are_cut_to_one_step(session):
    assert trace.profile(session, 500, repeats=1).n_tokens == 64


def a_line(**changes):
    values = {"name": "matmul ffn_down", "type": "Q4_0", "n": 1, "seconds": 1.0, "flops": 10**9, "bytes": 38 * 10**9}
    return trace.Line(**values | changes)


def a_profile(*lines, waiting=0.1):
    return trace.Profile(1, 100, 2, sum(x.seconds for x in lines) + waiting, waiting, 0.0, list(lines))


def test_limits_in_words():
    fast, slow = a_line(), a_line(name="matmul attn_q", type="IQ2_S", bytes=4 * 10**9)
    attend = a_line(name="attend", type="", seconds=0.5, bytes=10**10)
    first, second, third = trace.limits(a_profile(fast, attend), ROOF)
    assert first.startswith(
        "62% of the time (1000.00 ms): matrix products at 38.0 GB/s, 95% of what this machine reads"
    )
    assert "only fewer bytes" in first
    assert "attention over 101 positions at 20.0 GB/s, 50%" in second
    assert third.startswith("6% of the time (100.00 ms): threads waiting for each other")
    assert "most is lost in attn_q IQ2_S (10%)" in trace.limits(a_profile(fast, slow), ROOF)[0]
    prompt = a_line(flops=900 * 10**9, bytes=1)
    assert "450 GMAC/s, 90% of what this machine multiplies: the int8 peak" in trace.limits(a_profile(prompt), ROOF)[0]


def test_json(session):
    found = trace.profile(session, 1, repeats=1).as_dict(ROOF)
    assert len(found["limits"]) == 3 and found["roof"] == ROOF
    names = {"name", "type", "n", "seconds", "flops", "bytes", "gbps", "gflops", "roof_share", "products"}
    assert names == set(found["lines"][0])
    (attend,) = (line for line in found["lines"] if line["name"] == "attend")
    assert attend["products"] == {"gmacs_f32": attend["flops"] // 2}


def test_attention_is_compared_with_the_rate_of_its_products():
    line = a_line(
        name="attend", type="", flops=4 * 10**9, bytes=10**9, products={"gmacs_u7": 10**9, "gmacs_s16": 10**9}
    )
    assert line.share(ROOF | {"gmacs_u7": 5.0, "gmacs_s16": 4.0}) == pytest.approx(0.45)
    assert line.share(ROOF) == pytest.approx(1 / 40)
