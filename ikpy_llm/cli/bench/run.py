"""Running benchmark tests: one loaded model after the other, the tests on it, and the machine's roofs around each
repetition."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from ikpy_llm.cli.bench import machine
from ikpy_llm.cli.bench import result as bench_result
from ikpy_llm.cli.bench.result import Result, Test
from ikpy_llm.errors import IkpyError, shown

ROOF_SECONDS = 0.1  # for each roof, each time
Say = Callable[[int, int, str], None]  # progress(done, total, name)


@dataclass(frozen=True)
class Cache:
    """How keys and values are kept and attended to; the names are those of engine/options.py."""

    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    khad: bool = False
    vhad: bool = False
    flash_attn: bool = True


@dataclass(frozen=True)
class Setup:
    """A model as it is loaded: a file's path (None: the demo model) or a synthetic file, and what needs a new load."""

    source: object
    threads: int  # 0: the default
    n_ubatch: int
    repack: bool | None
    threads_batch: int = 0  # 0: as many as `threads`
    swa_full: bool = False
    mla: int = 3
    amb: int = 256
    ser: str = ""
    override_kv: tuple[tuple[str, object], ...] = ()  # see engine.overrides
    cache: Cache = Cache()
    pp_requant: bool = False

    def open(self, n_ctx: int, progress: Say):
        """A session with that many positions."""
        from ikpy_llm import models
        from ikpy_llm.engine.file import overrides
        from ikpy_llm.engine.file.gguf import open_gguf
        from ikpy_llm.engine.options import options_of
        from ikpy_llm.engine.step.session import Session

        file = self.source
        if hasattr(file, "check_memory"):  # generated weights
            file.check_memory()
        else:
            if file is None:
                from ikpy_llm.engine.file.demo_model import demo_model_path

                file = demo_model_path(progress)
            file = open_gguf(file)
            overrides.apply(file, dict(self.override_kv))
        sizes = {"n_ctx": n_ctx, "n_ubatch": self.n_ubatch}
        threads = {"threads": self.threads, "threads_batch": self.threads_batch}
        moe = {"mla": self.mla, "amb": self.amb, "ser": self.ser}
        cache = dataclasses.asdict(self.cache)
        how = {"repack": self.repack, "pp_requant": self.pp_requant, "swa_full": self.swa_full}
        options = options_of(**sizes, **threads, **moe, **cache, **how)
        return Session(file, models.builder(file.meta, str(file.path)), options, progress)


class Roofs:
    """Measures the machine as programs of a session use it: with so many threads, for its weights and attention."""

    def __init__(self, session, threads: int, programs: Iterable[str] = ("gen", "prompt")):
        from ikpy_llm.engine.measure import need

        kinds = (need.classes_of(session.program(name).records) for name in programs)
        self.threads, self.top, self.others = threads, code_class(session), tuple(dict.fromkeys(chain(*kinds)))

    def measure(self) -> dict[str, float]:
        """{"gbps", "gmacs", and the rates of attention's products} now, see roof.measure."""
        from ikpy_llm.kernels.derive import roof

        return roof.measure(self.threads, ROOF_SECONDS, self.top, self.others)


def between(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The rates of what ran in between: the means of both sides.

    The machine moves within seconds. The higher of both, which we took before, made shares too low by half of what it
    moves; the mean is as often too high as too low, and of several repetitions the median share is reported.
    """
    return {name: (before[name] + after[name]) / 2 for name in after}


def code_class(session) -> int:
    """Which dot roof bounds this model: that of the type with most weights in its matrices."""
    from ikpy_llm.kernels.derive import roof

    weights: dict[str, int] = {}
    for t in session.weights.matrices:
        if t.name.startswith("blk.") or len(session.weights.matrices) == 1:
            weights[t.type_name] = weights.get(t.type_name, 0) + math.prod(t.shape)
    return roof.code_class(max(weights, key=weights.get))


def describe(session, test: Test, n_batch: int, n_ubatch: int) -> Result:
    """What will be run on which model, in llama-bench's terms; the times are not there yet."""
    file, meta = session.file, session.file.meta
    tensors = file.tensors.values()
    kind = getattr(file, "type_name", "") or bench_result.file_type(meta.get("general.file_type"), tensors)
    layer_macs, idle_bytes = _layer_macs(session), 0
    label = meta.get("general.size_label", "?B")
    label = shown(label)[1:-1] if isinstance(label, str) else shown(label)
    if session.params.n_expert:
        idle_bytes = session.weights.n_bytes - session.touched()[0]
    return Result(
        model_filename=str(file.path),
        model_type=f"{meta['general.architecture']} {label} {kind}",
        model_size=sum(t.n_bytes for t in tensors),
        model_n_params=sum(math.prod(t.shape) for t in tensors),
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_threads=session.n_threads if test.n_gen else session.n_threads_batch,
        repack=session.weights.is_packed,
        type_k=session.options.cache_type_k,
        type_v=session.options.cache_type_v,
        flash_attn=session.options.flash_attn,
        run=test,
        test_time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        layer_macs=layer_macs,
        idle_bytes=idle_bytes,
        machine=machine.facts(),
        **settings(session),
        **work(session, test, min(n_batch, n_ubatch)),
    )


def settings(session) -> dict[str, object]:
    """-mla, -amb and -ser where the model has what they are about, and whether experts' up and gate are one product."""
    options = session.options
    out = {"fused_moe": not options.without() & {"gated_quantize", "all"}}
    if "blk.0.attn_kv_a_mqa.weight" in session.file.tensors:
        out |= {"mla_attn": options.mla, "attn_max_batch": options.amb}
    if session.params.n_expert and options.ser:
        out["ser"] = options.ser
    return out


def work(session, test: Test, step: int) -> dict[str, object]:
    """Bytes of weights and KV cache that the timed tokens must read, multiply-adds of their matrices, and the needs of
    each timed step, where attention's products count too.

    The roofs are of the first two: other traffic and arithmetic (activations, attention, norms) count as loss. Of
    experts, those that are used: by a token the exact number, by longer steps all.
    """
    from ikpy_llm.engine.measure import need

    layers, head = _layer_macs(session), _head_macs(session)
    one = session.touched()[0] if session.params.n_expert else session.weights.n_bytes
    steps, position = [], test.n_depth  # (tokens, positions seen) of each timed step
    for i in range(0, test.n_prompt, step):
        n = min(step, test.n_prompt - i)
        position += n
        steps += [] if test.gen_only else [(n, position)]
    steps += [(1, position + 1 + i) for i in range(test.n_gen)]
    n_heads = test.n_gen + (test.n_prompt > 0 and not test.gen_only)  # rows of logits: of a prompt only the last
    weights = (one if n == 1 else session.weights.n_bytes for n, _ in steps)
    n_bytes = sum(weights) + sum(session.kv.seen_bytes(seen) for _, seen in steps)
    last = max(0, len(steps) - test.n_gen - 1)  # step of the prompt, the only one with logits
    needs = [need.of_step(session, n, seen - n, int(i >= last)) for i, (n, seen) in enumerate(steps)]
    return {"bytes": n_bytes, "macs": sum(n for n, _ in steps) * layers + n_heads * head, "needs": needs}


def _head_macs(session) -> int:
    """Multiply-adds of one row of logits."""
    return sum(math.prod(t.shape) for t in session.weights.matrices if not t.name.startswith("blk."))


def _layer_macs(session) -> int:
    """Multiply-adds of one token in the matrices of the layers; of experts, in those that it uses."""
    if session.params.n_expert:
        return session.touched()[1] - _head_macs(session)
    return sum(math.prod(t.shape) for t in session.weights.matrices if t.name.startswith("blk."))


def run_test(
    session,
    result: Result,
    repetitions: int,
    warmup: bool,
    say: Say,
    roofs: Roofs | None = None,
    held: list[int] | None = None,
) -> None:
    """Fill `result.seconds`: the tokens before the timed ones once, a short run to warm up, then repetitions.

    With `roofs` also `result.roofs`, of what is measured right before and right after each repetition. held: the tokens
    that the session's cache begins with, which later tests go on from.
    """
    test, total, held = result.run, repetitions + warmup, [] if held is None else held

    def tokens(n: int) -> list[int]:
        return [random.randrange(session.n_vocab) for _ in range(n)]

    def read(ids: list[int], step: int) -> None:
        for at in range(0, len(ids), step):
            session.eval(ids[at : at + step])

    say(0, total, "")
    n_before = test.n_depth + test.n_prompt * test.gen_only
    del held[min(n_before, session.position) :]
    kept = len(held)
    held += tokens(n_before - kept)

    def go_back(position: int = n_before) -> bool:
        """Whether that took time."""
        try:
            session.rewind(min(position, session.position))
        except IkpyError:  # layers with a sliding window have dropped some of it
            session.rewind(0)
        rest = held[session.position :]
        read(rest, result.n_batch)
        return bool(rest)

    go_back(kept)
    n_prompt = 0 if test.gen_only else test.n_prompt
    if warmup:
        read(tokens(min(n_prompt, result.n_ubatch)), result.n_batch)
        read(tokens(min(test.n_gen, 1)), 1)
    earlier = None
    for i in range(repetitions):
        say(i + warmup, total, f"{test.name}, repetition {i + 1} of {repetitions}")
        moved = go_back()
        if roofs and (moved or not earlier):
            earlier = roofs.measure()
        prompt, gen = tokens(n_prompt), tokens(test.n_gen)
        started = time.perf_counter()
        read(prompt, result.n_batch)
        read(gen, 1)
        result.seconds.append(time.perf_counter() - started)
        if roofs:
            later = roofs.measure()
            result.roofs.append(between(earlier, later))
            earlier = later
    say(total, total, "")


def profile_of(session, result: Result):
    """One step of the test, record by record: of its generation, or of its prompt where it has none."""
    from ikpy_llm.engine.measure import trace

    test = result.run
    n, depth = (1, test.n_depth + test.n_prompt) if test.n_gen else (test.n_prompt, test.n_depth)
    return trace.profile(session, n, depth)
