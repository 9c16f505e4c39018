"""The planner: what runs at the same time never meets in memory."""

import random

import pytest
import tiny_llama
from test_graph import META, trace

from ikpy_llm.engine.graph.graph import Value
from ikpy_llm.engine.program import fusion, lowering, planner
from ikpy_llm.engine.program.lower import lower
from ikpy_llm.engine.program.records import Cost, Record, Scratch
from ikpy_llm.kernels.compiler.jit import Kernel


def record(reads, writes, extra=()):
    return Record(Kernel("x"), (*reads, *writes, *extra), tuple(reads), tuple(writes), "x", "x", Cost(), "tokens")


def check(plan):
    """Two records of one epoch do not conflict, and buffers alive in the same epoch do not overlap."""
    records, epochs = plan.records, plan.epochs
    for i, a in enumerate(records):
        for j in range(i + 1, len(records)):
            if epochs[i] == epochs[j]:
                b = records[j]
                assert not set(a.writes) & (set(b.reads) | set(b.writes))
                assert not set(a.reads) & set(b.writes)
    spans = {k: (epochs[u[0]], epochs[u[-1]]) for k, u in planner.buffers(records).items()}
    for a, (a0, a1) in spans.items():
        assert plan.offsets[a] % planner.ALIGN == 0
        assert plan.offsets[a] + plan.sizes[a] <= plan.n_bytes
        for b, (b0, b1) in spans.items():
            if a is not b and a0 <= b1 and b0 <= a1:
                low, high = sorted((a, b), key=plan.offsets.get)
                assert plan.offsets[low] + plan.sizes[low] <= plan.offsets[high]
    assert epochs == sorted(epochs)


@pytest.mark.parametrize("seed", range(20))
def test_random_programs(seed):
    rng = random.Random(seed)
    values, records = [Value(0, 10)], [record([], [])]
    records = [record([], [values[0]])]
    for i in range(1, 60):
        reads = rng.sample(values[-6:], min(len(values), rng.randint(1, 3)))
        if rng.random() < 0.2:
            writes = [reads[0]]  # in place
        else:
            writes = [Value(i, rng.randint(1, 500))]
            values += writes
        extra = [Scratch(rng.randint(1, 3000))] if rng.random() < 0.3 else []
        records.append(record(reads, writes, extra))
    plan = planner.plan(records, lambda v: 4 * v.width, keep=(values[-1],))
    check(plan)
    apart = planner.plan(records, lambda v: 4 * v.width, overlap=False)
    assert apart.epochs == list(range(len(records))) and all(apart.barriers[:-1])
    check(apart)
    naive = sum(plan.sizes.values())
    assert plan.n_bytes < naive


def test_a_barrier_where_data_passes_and_nowhere_else():
    a, b, c, d = (Value(i, 1) for i in range(4))
    records = [record([], [a]), record([], [b]), record([a], [c]), record([b], [d]), record([c, d], [a])]
    assert planner.epochs(records) == [0, 0, 1, 1, 2]
    plan = planner.plan(records, lambda v: 4)
    assert plan.barriers == [False, True, False, True, False]


def test_writing_what_others_still_read_needs_a_barrier():
    a, b, c = (Value(i, 1) for i in range(3))
    assert planner.epochs([record([a], [b]), record([c], [a])]) == [0, 1]


@pytest.mark.parametrize("n_rows", [1, 512])
def test_a_model(n_rows):
    graph = trace(META, tiny_llama.shapes(META, bias=True))
    low = lowering.Lowering(n_rows, 1, 3, 512, True, graph.tensors)
    records = lower(fusion.apply(graph), low)
    plan = planner.plan(records, low.n_bytes, keep=(records[-1].writes[-1],))
    check(plan)
    labels = [r.label for r in records]
    first = labels.index("blk.0.attn_q.weight")
    assert labels[first : first + 3] == [f"blk.0.attn_{x}.weight" for x in "qkv"]
    assert len(set(plan.epochs[first : first + 3])) == 1, "q, k and v run without a barrier between them"
    assert plan.epochs[labels.index("blk.1.ffn_gate.weight")] == plan.epochs[labels.index("blk.1.ffn_up.weight")]
