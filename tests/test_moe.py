"""Models with experts against their NumPy forms; the router's kernels by themselves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_deepseek2
import tiny_llama
import tiny_moe
from reference_llama import ReferenceLlama
from reference_moe import ReferenceMoE, choose
from sessions import session

from ikpy_llm.errors import ModelFileError
from ikpy_llm.kernels.compiler.jit import Kernel, call
from ikpy_llm.kernels.derive import layout
from ikpy_llm.kernels.moe.layout import RoutesLayout

TOKENS = np.random.default_rng(2).integers(0, tiny_moe.N_VOCAB, 150).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("moe")


EXACT, CODES = 3e-4, 0.05  # of the logits' deviation, on average: f16 cache, and activations of 8 bits
CASES = {
    "qwen3moe": ({}, EXACT),
    "qwen3moe, 8 bits": ({"types": ("Q8_0",), "tied": True}, CODES),
    "qwen3moe, up and gate differ": ({"types": ("Q8_0", "Q4_0", "F32", "Q5_1", "F16")}, CODES),
    "qwen3moe, one expert used": ({"n_used": 1}, EXACT),
    "qwen3moe, all used": ({"n_expert": 5, "n_used": 5}, EXACT),
    "qwen3moe, rows that fill no panel": ({"n_ff_expert": 40, "n_embd": 72, "n_head": 3, "n_head_kv": 1}, EXACT),
    "qwen3moe, many experts": ({"n_expert": 70, "n_used": 6}, EXACT),
    "qwen3moe, weights as they are": ({"expert_weights_norm": False, "expert_weights_scale": 1.5}, EXACT),
    "qwen2moe, weights to a sum of one": ({"architecture": "qwen2moe", "expert_weights_norm": True}, EXACT),
    "qwen2moe": ({"architecture": "qwen2moe", "bias": True}, EXACT),
    "qwen2moe, 8 bits": ({"architecture": "qwen2moe", "types": ("Q8_0", "Q4_1")}, CODES),
    "llama": ({"architecture": "llama", "n_expert": 4, "n_used": 2}, EXACT),
    "matrices and experts with scales": ({"scales": True}, EXACT),
    "qwen2moe, scales, 8 bits": ({"architecture": "qwen2moe", "scales": True, "types": ("Q8_0", "Q4_0")}, CODES),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model(folder, case):
    """Prompt, parts of it, tokens one by one and other threads give the same bits, which are those of the model."""
    options, tolerance = CASES[case]
    path = tiny_moe.write(folder / "case.gguf", **options)
    reference = ReferenceMoE(path, np.float16)
    expected = reference.logits(TOKENS)
    with session(path) as s:
        got = s.eval(TOKENS, all_logits=True)
        s.rewind(0)
        parts = [s.eval(TOKENS[i : i + n], all_logits=True) for i, n in ((0, 1), (1, 5), (6, 60), (66, 1), (67, 2))]
        np.testing.assert_array_equal(np.concatenate(parts), got[:69])
        s.rewind(0)
        np.testing.assert_array_equal(np.concatenate([s.eval([t]) for t in TOKENS[:40]]), got[:40])
    assert abs(got - expected).mean() < tolerance * expected.std()
    with session(path, threads=3, n_ubatch=33) as s:
        np.testing.assert_array_equal(s.eval(TOKENS, all_logits=True), got)


def test_weights_that_are_not_woven(folder):
    path = tiny_moe.write(folder / "rows.gguf", types=("Q8_0", "Q4_0"))
    with session(path, repack=False) as s:
        got = s.eval(TOKENS, all_logits=True)
        s.rewind(0)
        one_by_one = np.concatenate([s.eval([t]) for t in TOKENS[:40]])
    with session(path) as s:
        np.testing.assert_array_equal(s.eval(TOKENS, all_logits=True), got)
    assert abs(one_by_one - got[:40]).max() < 1e-3  # the router's F32 rows are summed in another order


SCALES = "scale", "input_scale"


def apart(tensors: dict) -> dict:
    """The same with a tensor for each expert, as files of Mixtral were at first."""
    out = {}
    for name, (kind, shape, raw) in tensors.items():
        if "_exps" not in name:
            out[name] = kind, shape, raw
            continue
        n = len(raw) // shape[0]
        for i in range(shape[0]):
            out[name.replace("_exps", f".{i}")] = kind, shape[1:] or (1,), raw[i * n : (i + 1) * n]
    return out


@pytest.mark.parametrize("repack", [True, False])
def test_experts_that_are_tensors_of_their_own(folder, caplog, repack):
    meta = tiny_moe.meta("llama", n_expert=4, n_used=2)
    shapes = tiny_moe.shapes(meta)
    if repack:  # which scales do not know of
        shapes |= {f"blk.{i}.ffn_{x}_exps.{s}": (4,) for i in (0, 1) for x in ("up", "down") for s in SCALES}
    tensors = tiny_llama.random(shapes, ("Q8_0", "Q4_0", "Q5_1"), 0)
    logits = []
    for some in tensors, apart(tensors):
        path = tiny_moe.gguf_writer.write(folder / "experts.gguf", meta, some)
        with caplog.at_level("INFO"), session(path, repack=repack) as s:
            logits.append(s.eval(TOKENS[:40], all_logits=True))
    np.testing.assert_array_equal(*logits)
    line = "ffn_down_exps and ffn_gate_exps and ffn_up_exps: not in the file, computed at load"
    assert [r.message for r in caplog.records if "not in the file" in r.message] == [line]


@pytest.mark.parametrize("change", ["type", "missing", "shape", "scale"])
def test_experts_that_cannot_be_joined_are_refused(folder, change):
    meta = tiny_moe.meta("llama", n_expert=4, n_used=2)
    tensors = apart(tiny_llama.random(tiny_moe.shapes(meta), ("F32",), 0))
    name = "blk.1.ffn_up.2.weight"
    _, (rows, columns), raw = tensors[name]
    if change == "type":
        tensors[name] = "F16", (rows, columns), raw[: len(raw) // 2]
    elif change == "missing":
        del tensors[name]
    elif change == "scale":
        tensors |= {f"blk.1.ffn_up.{i}.scale": ("F32", (1,), b"\0\0\0?") for i in (0, 1, 3)}
    else:
        tensors[name] = "F32", (rows - 1, columns), raw[: 4 * (rows - 1) * columns]
    path = tiny_moe.gguf_writer.write(folder / "bad.gguf", meta, tensors)
    with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_up\.2\.(weight|scale)") as error:
        session(path)
    assert "\n" not in str(error.value)


UNREADABLE = """
import ctypes, mmap, sys
import numpy as np
from sessions import session
libc, page, tokens = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE, list(range(25))
with session(sys.argv[1], repack=False, n_ctx=256) as s:
    def logits():
        s.rewind(0)
        return np.concatenate([s.eval(tokens[:20]), *(s.eval([t]) for t in tokens[20:])])
    before = logits()
    for part in ("up", "gate", "down"):
        t = s.tensors[f"blk.1.ffn_{part}_exps.weight"]
        address = t.data.ctypes.data
        for e in map(int, sys.argv[2:]):
            first, last = (-(-(address + i * t.n_bytes // 8) // page) for i in (e, e + 1))
            last -= (address + (e + 1) * t.n_bytes // 8) % page > 0
            assert last - first > 9
            assert libc.mprotect(ctypes.c_void_p(first * page), ctypes.c_size_t((last - first) * page), 0) == 0
    assert (logits() == before).all()
print("read")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect as Linux has it")
def test_experts_that_are_never_chosen_are_never_read(folder):
    """Where weights lie in the mapped file, so that nobody pages them in: a bias lets three of eight experts be chosen,
    and the pages of the others may not be read. Those of a chosen one must.
    """
    meta = tiny_deepseek2.meta(n_layer=2, n_ff_expert=1024, expert_gating_func=2, n_shared=0)
    tensors = tiny_llama.random(tiny_deepseek2.shapes(meta), ("Q8_0",), 0)
    tensors["blk.1.exp_probs_b.bias"] = "F32", (8,), np.float32([0, 9, 0, 0, 9, 9, 0, 0]).tobytes()
    path, tests = tiny_moe.gguf_writer.write(folder / "pages.gguf", meta, tensors), Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests)))}
    for experts, ends in ("02367", 0), ("4", -signal.SIGSEGV):
        done = subprocess.run(
            [sys.executable, "-c", UNREADABLE, path, *experts], env=env, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (ends, "" if ends else "read\n"), done.stderr


def test_qwen3_without_experts(folder):
    names = ("attn_q_norm", "attn_k_norm")
    meta = tiny_llama.meta(architecture="qwen3", head_dim=32)
    shapes = tiny_llama.shapes(meta) | {f"blk.{i}.{name}.weight": (32,) for i in range(2) for name in names}
    path = tiny_moe.gguf_writer.write(folder / "qwen3.gguf", meta, tiny_llama.random(shapes, ("F32",), 0))
    expected = ReferenceLlama(path, np.float16).logits(TOKENS)
    with session(path) as s:
        got = s.eval(TOKENS, all_logits=True)
    assert abs(got - expected).mean() < EXACT * expected.std()


REFUSED = {
    "expert_used_count": (9, "1 to the number of experts, 8"),
    "expert_count": (7, "the hyperparameters imply"),
    "expert_feed_forward_length": (33, "the hyperparameters imply"),
    "expert_gating_func": (2, "accepted: 0, 1"),
    "expert_shared_count": (1, "accepted: 0"),
    "expert_weights_scale": (-2.0, "accepted: 0 to"),
    "expert_weights_norm": (1, "true or false"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_metadata_that_would_be_run_wrongly_is_refused(folder, key):
    value, why = REFUSED[key]
    meta = tiny_moe.meta()
    tensors = tiny_llama.random(tiny_moe.shapes(meta), ("F32",), 0)
    path = tiny_moe.gguf_writer.write(folder / "bad.gguf", meta | {f"qwen3moe.{key}": value}, tensors)
    with pytest.raises(ModelFileError, match=why):
        session(path)


ROUTERS = {
    "softmax": {},
    "norm and scale": {"norm": True, "scale": 2.5},
    "sigmoid": {"gating": "sigmoid", "norm": True},
    "bias": {"gating": "sigmoid", "bias": True, "norm": True, "scale": 0.5},
    "groups by two": {"gating": "sigmoid", "bias": True, "n_group": 4, "n_group_used": 2},
    "groups by the best": {"n_group": 8, "n_group_used": 3},
    "few": {"ser": (2, 0.5), "norm": True},
    "exactly as few": {"ser": (3, 1.0)},
}


@pytest.mark.parametrize("case", ROUTERS)
@pytest.mark.parametrize(("n_expert", "n_used"), [(8, 3), (16, 4), (64, 6), (40, 8)])
def test_router(case, n_expert, n_used):
    """Experts, weights and groups of a prompt, and of each of its rows alone, on any number of threads."""
    how = {"gating": "softmax", "n_group": 1, "n_group_used": 1, "norm": False, "scale": 1.0, "ser": (0, 0.0)}
    how |= ROUTERS[case]
    rng, n, t = np.random.default_rng(n_expert), 37, layout.gemm_tile()
    logits = rng.normal(0, 2, (n, n_expert)).astype(np.float32)
    bias = rng.normal(0, 0.3, n_expert).astype(np.float32) if how.pop("bias", False) else None
    expected = choose(logits.astype(np.float64), n_used, bias=bias, **how)
    score = "" if how["n_group"] == 1 else "max" if bias is None else "top2"
    for single in (False, True):
        for nth in (1, 2, 3):
            at = RoutesLayout(1 if single else n, n_used, n_expert, 1 if single else t)
            for row in range(0, n, 1 if single else n):
                part = logits[row : row + at.n_rows].copy()
                routes, slots = np.full(at.n_bytes, 255, np.uint8), np.zeros(8, np.int64)
                state = np.array([at.n_rows, 0, 0, 0], np.int64)
                words = part, 0 if bias is None else bias, routes, at.weights, at.places, at.groups, n_expert, n_used
                words += how["n_group"], how["n_group_used"], int(how["norm"]), how["scale"]
                words += how["ser"][0], float(how["ser"][1]), state, slots
                call(Kernel("moe.route.route", gating=how["gating"], group_score=score, single=single), *words, nth=nth)
                if not single:
                    words = routes, at.places, at.order, at.groups, n_expert, n_used, state, slots
                    call(Kernel("moe.route.group", t=t), *words, nth=nth)
                check_routes(at, routes, slots, expected[row : row + at.n_rows])


def check_routes(at, routes, slots, expected):
    """Everything that route and group wrote."""

    def part(start, n, dtype=np.int32):
        return routes[start : start + 4 * n].view(dtype)

    n_slots = at.n_rows * at.n_used
    ids, places = (part(start, n_slots).reshape(at.n_rows, -1) for start in (at.ids, at.places))
    weights = part(at.weights, n_slots, np.float32).reshape(at.n_rows, -1)
    for row, (wanted, wanted_weights) in enumerate(expected):
        k = len(wanted)
        np.testing.assert_array_equal(ids[row], [*wanted, *[-1] * (at.n_used - k)])
        np.testing.assert_allclose(weights[row], [*wanted_weights, *[0] * (at.n_used - k)], rtol=2e-6, atol=1e-9)
    used = np.argwhere(ids >= 0)
    assert slots[4] == len(used) and (places[ids < 0] == -1).all()
    n_groups = int(routes[:8].view(np.int64)[0])
    groups = part(at.groups, 4 * n_groups).reshape(-1, 4)[:, :3]
    assert slots[0] == groups[:, 2].sum() <= at.n_slots
    np.testing.assert_array_equal(groups[:, 1], np.cumsum([0, *groups[:-1, 2]]))
    if at.t == 1:
        np.testing.assert_array_equal(groups, [[e, j, 1] for j, e in enumerate(ids[0]) if e >= 0])
        return
    assert (groups[:, 2] % at.t == 0).all() and sorted(set(groups[:, 0])) == sorted(set(ids[ids >= 0]))
    order = part(at.order, int(slots[0]))
    for e, first, count in groups:
        rows = [row for row, j in used if ids[row, j] == e]
        np.testing.assert_array_equal(order[first : first + count], rows + [rows[-1]] * (count - len(rows)))
    for row, j in used:
        place = places[row, j]
        assert order[place] == row
        e = groups[np.searchsorted(groups[:, 1], place, side="right") - 1, 0]
        assert e == ids[row, j]


def test_values_that_are_no_numbers_choose_some_expert():
    """NaN logits must not lead to addresses of experts there are not; that they are wrong is found elsewhere."""
    at = RoutesLayout(1, 4, 8, 1)
    for logits in np.full(8, np.nan, np.float32), np.full(8, -np.inf, np.float32), np.full(8, np.inf, np.float32):
        routes, slots, state = np.zeros(at.n_bytes, np.uint8), np.zeros(8, np.int64), np.array([1, 0, 0, 0], np.int64)
        words = logits, 0, routes, at.weights, at.places, at.groups, 8, 4, 4, 2, 1, 1.0, 0, 0.0, state, slots
        call(Kernel("moe.route.route", gating="softmax", group_score="top2", single=True), *words)
        ids = routes[at.ids : at.ids + 16].view(np.int32)
        assert sorted(set(ids)) == sorted(ids) and ids.min() >= 0 and ids.max() < 8
