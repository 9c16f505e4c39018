"""A session: one model, one sequence. Tokens in, logits out; knows its position and can go back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from ikpy_llm import forks
from ikpy_llm.arguments import switch, token_ids, whole
from ikpy_llm.engine.cache import kv_cache
from ikpy_llm.engine.file import requant
from ikpy_llm.engine.file.gguf import GGUFFile
from ikpy_llm.engine.graph import claims, nextn, rope
from ikpy_llm.engine.graph.graph import CELLS, OUTPUTS, SLOTS, TOKENS, Graph, Value
from ikpy_llm.engine.graph.params import Params
from ikpy_llm.engine.options import DEFAULT_CTX, Options
from ikpy_llm.engine.program import fusion, planner
from ikpy_llm.engine.program.lower import lower
from ikpy_llm.engine.program.lowering import Lowering
from ikpy_llm.engine.program.ops.rows import deliver
from ikpy_llm.engine.program.program import Program
from ikpy_llm.engine.program.records import At
from ikpy_llm.engine.program.rename import renamed
from ikpy_llm.engine.step import workers
from ikpy_llm.engine.step.shape import Shape
from ikpy_llm.engine.step.timing import Timing
from ikpy_llm.engine.step.weights import Weights
from ikpy_llm.errors import IkpyError, ModelFileError, shown
from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.run import cores, faults, free_memory
from ikpy_llm.kernels.run.runner import CLAIM, RECORD

log = logging.getLogger("ikpy.session")
ALL_LOGITS = 64 << 20  # bytes of logits one step may produce; longer requests for all rows take several steps
BLOCK = 64  # words of a state block
N_TOKENS, POSITION, N_OUTPUTS, BAD, N_USED, TARGET = range(6)  # those in use
STATES = TOKENS, OUTPUTS, SLOTS, CELLS


class Session:
    """One sequence over the model in `file`; `build(graph, params)` is its architecture's definition.

    `progress(done, total, name)` is called while kernels are compiled and weights are woven. Everything wrong with the
    file or the settings is an IkpyError before the first token. Close it, or use it as a context manager.
    """

    def __init__(self, file: GGUFFile, build: Callable, options: Options = Options(), progress=None):  # noqa: B008 (frozen)
        self.file, self.options, self._build = file, options, build
        self.params = Params(str(file.path), file.meta.get("general.architecture", ""), file.meta)
        self.n_ctx = self._context()
        self.n_threads = cores.usable(options.threads or cores.default_threads())
        self.n_threads_batch = cores.usable(options.threads_batch or self.n_threads)
        # and those that the model computes from them
        self.tensors, drafts = nextn.left_out(self.params, file.tensors)
        if drafts:
            log.info("NextN block %s, for drafting tokens: not read", ", ".join(map(str, drafts)))
        graph, _ = self._trace(last_rows=False)
        claims.check(graph, self.params, file)
        made = [n for n, t in self.tensors.items() if n not in file.tensors and not t.is_part]
        if made := sorted({name.rpartition(".")[0].split(".")[-1] for name in made}):
            log.info("%s: not in the file, computed at load", " and ".join(made))
        if unused := list(graph.claimed.values()).count("unused"):
            log.info("%d input scales are not used: activations are not rounded to NVFP4", unused)
        self.n_vocab = graph.rows("token_embd.weight")
        self._requantized = self._requantize(graph) if options.pp_requant else {}
        self.weights = Weights(file, self.tensors, graph.claimed)
        unknown = options.without() - {*fusion.names(), "all"}
        if unknown:
            raise IkpyError(
                f"no_fusion: no row is called {shown(min(unknown))}; there are: {', '.join(fusion.names())}, all"
            )
        self._layers = self._cache_layers(graph)
        need = self._check_memory(graph)
        self.packed = self.weights.fits(need) if options.repack is None else options.repack
        n_rows = self._n_step
        n_all = max(1, min(n_rows, ALL_LOGITS // (4 * self.n_vocab)))
        self._shapes = {"gen": Shape(1, 1, False), "prompt": Shape(n_rows, 1, True), "all": Shape(n_all, n_all, False)}
        self._shapes["hidden"] = Shape(n_rows, n_rows, False, hidden=True)
        self._programs: dict[str, tuple[Program, Value]] = {}
        self._held: dict[str, np.ndarray] = {}  # bytes of tensors whose address a program has
        self._pending: dict[str, tuple[planner.Plan, Value]] = {}
        self.n_evaluated = 0  # tokens since the model was opened
        self.position, self._written = 0, 0  # positions in use; end of those written since the sequence began
        self.timings = {"prompt": Timing(), "generation": Timing()}
        self._state = np.zeros((4, BLOCK), np.int64)  # one block per kind of rows, cache lines apart
        self._words = memoryview(self._state.reshape(-1))  # its numbers; NumPy's code is cold when a token begins
        self._ids = np.zeros(max(n_rows, 1), np.int32)
        # Held while tokens are evaluated. The thread that has it may come back: a signal's handler may close the model.
        forks.lock(self, "_lock", threading.RLock)
        forks.call(self, Session._left_alone)
        # owns_file: `close` closes the file; _busy: the thread that evaluates
        self.owns_file, self._closing, self._busy = False, False, 0
        self.progress: Callable[[int, int, str], None] | None = None  # called while several tokens are read
        self._open(graph, need, progress)

    def __repr__(self) -> str:
        return f"<Session {self.file.path}: {self.params.architecture}, position {self.position} of {self.n_ctx}>"

    # ---- loading
    def _context(self) -> int:
        p, wanted = self.params, self.options.n_ctx
        n = min(p.n_ctx_train, DEFAULT_CTX) if wanted is None else wanted or p.n_ctx_train
        if n > p.n_ctx_train:
            log.warning("context of %d positions: the model was trained for %d", n, p.n_ctx_train)
        return kv_cache.rounded(n)

    @property
    def _n_step(self) -> int:
        """Most rows of a step."""
        return min(self.options.n_ubatch, self.n_ctx)

    def _cache_layers(self, graph: Graph) -> dict[int, kv_cache.Layer]:
        n_step = self.n_ctx if self.options.swa_full else self._n_step
        return kv_cache.layers(graph.ops, self.n_ctx, n_step, self._kv_types)

    @property
    def _kv_types(self) -> kv_cache.Types:
        o = self.options
        return kv_cache.Types(o.cache_type_k, o.cache_type_v, o.khad, o.vhad)

    def _check_memory(self, graph: Graph) -> int:
        """Bytes the context needs; IkpyError if there are not so many."""
        free, layers = free_memory.available(), self._layers.values()
        cache = sum(layer.n_bytes for layer in layers)
        need = cache + sum(4 * self.n_ctx * angles.n_rot for angles in rope.of_graph(graph))  # and tables of angles
        rings = sorted({layer.n_cells for layer in layers if layer.n_cells < self.n_ctx})
        part = f" ({sum(x.n_cells in rings for x in layers)} of {len(layers)} layers: {rings[0]})" if rings else ""
        log.info("%s, %d positions%s", kv_cache.size_line(layers), self.n_ctx, part)
        if free is not None and need > free:
            raise IkpyError(
                f"{self.file.path}: a context of {self.n_ctx} positions needs {need / 1e6:.0f} MB for the KV cache, "
                f"{free / 1e6:.0f} MB are free; choose a smaller one (-c) or a smaller type (-ctk, -ctv)"
            )
        return need

    @property
    def _n_buffers(self) -> int:
        """Bytes of the arenas of the programs that are not made yet."""
        return sum(plan.n_bytes for plan, _ in self._pending.values())

    def _requantize(self, graph: Graph) -> dict[str, str]:
        """Add each matrix of less than 8 bits as Q8_0 to the tensors: its name -> the name of the other."""
        small = [
            t for t in (self.tensors[n] for n, use in graph.claimed.items() if "matrix" in use) if requant.is_small(t)
        ]
        made = [requant.as_q8_0(t) for t in small]
        self.tensors |= {t.name: t for t in made}
        graph.claimed.update((t.name, "matrix") for t in made)
        n_bytes = sum(t.n_bytes for t in made)
        log.info("prompts use %d matrices requantized to Q8_0: %.1f MB more memory", len(made), n_bytes / 1e6)
        return {a.name: b.name for a, b in zip(small, made, strict=True)}

    def _trace(self, last_rows: bool, hidden: bool = False, token: bool = False) -> tuple[Graph, Value]:
        graph = Graph(str(self.file.path), self.tensors, last_rows, hidden, token, self.options, self.n_ctx)
        return graph, self._build(graph, self.params)

    def _tables(self, graph: Graph) -> dict[rope.Angles, np.ndarray]:
        """Every table of rotations the model uses."""
        out = {}
        for angles in rope.of_graph(graph):
            freqs = self.weights.vector(angles.freqs) if angles.freqs else None
            if freqs is not None and not (np.isfinite(freqs).all() and (freqs > 0).all()):
                raise ModelFileError(
                    f"{self.file.path}: tensor '{angles.freqs}' has values that are not finite and positive"
                )
            out[angles] = rope.table(angles, self.n_ctx, freqs)
        return out

    def _open(self, graph: Graph, need: int, progress) -> None:
        for name in ("gen", "prompt"):
            self._prepare(name)
        if self.packed and self.options.repack is None and not self.weights.fits(need + self._n_buffers):
            self.packed = False
            for name in ("gen", "prompt"):
                self._prepare(name)
        if self.options.repack is None and not self.packed:
            log.warning("not enough memory to weave the weights: they are read from the file, which is slower")
        sizes = self.weights.memory(self.packed), getattr(self.file, "n_bytes", 0), self._n_buffers, need
        free_memory.check(self.file.path, self.packed, self._n_step, *sizes)
        self.kv = kv_cache.KVCache(self._layers, self.options.check)
        kernels = {k for plan, _ in self._pending.values() for r in plan.records for k in r.kernels}
        packing = self.weights.kernels(self.packed)
        packing += requant.kernels(self.tensors[name] for name in self._requantized)
        try:
            jit.load([*workers.KERNELS, *faults.KERNELS, *packing, *sorted(kernels, key=str)], progress)
        except jit.JitError as error:
            raise IkpyError(f"kernels cannot be compiled: {error}") from error
        faults.install()  # before the file's tensors are read
        self._angles = self._tables(graph)
        self._pools = {n: workers.Workers(n, self.options.pin) for n in {self.n_threads, self.n_threads_batch}}
        try:
            self.weights.read(self.packed, self._pools[max(self._pools)], progress)
            self.file.check_unchanged()
        except BaseException:
            self.close()
            raise

    def threads_of(self, name: str) -> int:
        """Worker threads of a program class."""
        return self.n_threads if name == "gen" else self.n_threads_batch

    def _prepare(self, name: str) -> None:
        """Lower a program class to records; which kernels it needs is known then."""
        shape = self._shapes[name]
        graph, logits = self._trace(shape.last_row_only, shape.hidden, name == "gen")
        n_step = self.n_ctx if self.options.swa_full else self._n_step
        sizes = shape.n_rows, shape.n_outputs, self.threads_of(name), self.n_ctx
        low = Lowering(*sizes, self.packed, self.tensors, n_step, self.options.expert_limits())
        low.kv, low.flash_attn = self._kv_types, self.options.flash_attn
        steps = fusion.apply(graph, self.options.without())
        if name != "gen":
            steps = renamed(steps, self._requantized)
        records = [*lower(steps, low), deliver(logits)]
        overlap = not self.options.without() & {"overlap", "all"}
        self._pending[name] = planner.plan(records, low.n_bytes, keep=(logits,), overlap=overlap), logits

    def _program(self, name: str) -> tuple[Program, Value]:
        if name not in self._programs:
            if name not in self._pending:
                self._prepare(name)
            plan, logits = self._pending.pop(name)
            kernels = jit.load({k for r in plan.records for k in r.kernels})
            self._programs[name] = Program(plan, kernels, self._address, self.options.check), logits
        return self._programs[name]

    def program(self, name: str) -> Program:
        """The program of a class: "gen" (one token), "prompt" or "all" (logits of every row)."""
        return self._program(name)[0]

    def _address(self, at: At) -> int:
        """Where something outside a program's arena lies."""
        match at.kind:
            case "file":
                if at.key not in self._held:
                    self._held[at.key] = self.weights.kept(at.key)
                return self._held[at.key].ctypes.data
            case "panel":
                return self.weights.panel(at.key)
            case "k":
                return self.kv.k(at.key)
            case "v":
                return self.kv.v(at.key)
            case "counters":
                return self.kv.counters
            case "state":
                return self._state[STATES.index(at.key)].ctypes.data
            case "ids":
                return self._ids.ctypes.data
            case "angles":
                return self._angles[at.key].ctypes.data
        raise KeyError(at)

    # ---- running
    def eval(self, tokens, all_logits: bool = False) -> np.ndarray:
        """Append tokens; logits float32 (1, n_vocab) of the last, or (n, n_vocab) of each with all_logits.

        IkpyError for no tokens, ids out of range, a full context, and non-finite values in the computation; the
        position is then unchanged (0 where a sliding window has moved on).
        """
        every = switch("all_logits", all_logits)
        return self._eval(tokens, lambda ids: self._eval_all(ids, "all") if every else self._eval_last(ids))

    def hidden(self, tokens) -> np.ndarray:
        """Append tokens; float32 (n, n_embd): for each what the output matrix would turn into logits."""
        return self._eval(tokens, lambda ids: self._eval_all(ids, "hidden"))

    def _eval(self, tokens, run: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        tokens = self._checked(tokens)
        with self._lock:
            before = self.position
            try:
                self._busy = threading.get_ident()
                self.file.check_unchanged()
                return run(tokens)
            except BaseException:
                self.position = before if self._kept(before) else 0
                raise
            finally:
                self._busy = 0
                if self._closing:
                    self._free()

    def _checked(self, tokens) -> np.ndarray:
        tokens = token_ids("tokens", tokens, self.n_vocab)
        if not tokens:
            raise IkpyError("there are no tokens; one token id or more are accepted")
        if not self.position and len(tokens) > self.n_ctx:
            raise IkpyError(
                f"a text of {len(tokens)} tokens does not fit into the context of {self.n_ctx} positions; choose a "
                "larger one (-c)"
            )
        if self.position + len(tokens) > self.n_ctx:
            raise IkpyError(
                f"the context of {self.n_ctx} positions is full: {self.position} are used, {len(tokens)} more are "
                f"wanted; choose a larger one (-c)"
            )
        return np.array(tokens, np.int32)

    def _eval_last(self, tokens: np.ndarray) -> np.ndarray:
        if len(tokens) == 1:
            return self._step("gen", tokens, 1)
        n, total, told = self._shapes["prompt"].n_rows, len(tokens), None
        if self.progress is not None:
            self.progress(0, total, "")
        for i in range(0, total, n):
            part = tokens[i : i + n]
            if self.progress is not None:
                told = partial(_tell, self.progress, i, len(part), total)
            logits = self._step("prompt", part, 1 if i + len(part) == total else 0, told)
        return logits

    def _eval_all(self, tokens: np.ndarray, name: str) -> np.ndarray:
        parts, n = [], self._shapes[name].n_rows
        for i in range(0, len(tokens), n):
            part = tokens[i : i + n]
            parts.append(self._step(name, part, len(part)))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _step(self, name: str, tokens: np.ndarray, n_outputs: int, told=None) -> np.ndarray:
        """Run one program on at most as many tokens as it takes; logits of the last n_outputs. told(share)."""
        program, logits = self._program(name)
        n = len(tokens)
        self._ids[:n] = tokens
        words, end, out = self._words, self.position + n, np.empty((n_outputs, logits.width), np.float32)
        starts = (n, self.position, n_outputs), (n_outputs, end - n_outputs, n_outputs), (), (end, 0)
        for block, numbers in enumerate(starts):
            for i, number in enumerate(numbers):
                words[block * BLOCK + i] = number
            words[block * BLOCK + BAD] = 0
        words[STATES.index(OUTPUTS) * BLOCK + TARGET] = out.ctypes.data
        count = program.count if n_outputs else program.body
        self._written = max(self._written, end)
        start = time.perf_counter()
        run, address, done = self._pools[self.threads_of(name)].run, program.address, 0
        for n_records in program.parts(n, count):  # between them Python obeys Ctrl-C
            run(address, n_records)
            self.file.check_unchanged()
            address += 8 * RECORD * n_records
            done += n_records
            if told is not None:
                told(done / count)
        seconds = time.perf_counter() - start
        if any(words[BAD::BLOCK]):
            self.weights.check_rows(tokens)
            raise IkpyError(
                f"{self.file.path}: non-finite value while computing positions {self.position} to {end - 1}; the file "
                "may be damaged"
            )
        kind = "generation" if name == "gen" else "prompt"
        self.timings[kind].add(seconds, program, n, n_outputs, self.position)
        self.position = end
        self.n_evaluated += n
        return out

    def _kept(self, position: int) -> bool:
        """Whether the cache holds all that a token at `position` sees."""
        rings = (layer for layer in self._layers.values() if layer.n_cells < self.n_ctx)
        return all(max(0, position - r.window + 1) >= self._written - r.n_cells for r in rings)

    def rewind(self, position: int = 0) -> None:
        """Forget everything from `position` on; the next tokens go there.

        IkpyError where layers with a sliding window no longer hold what came before it; 0 is always possible.
        """
        position = whole("position", position)
        if not 0 <= position <= self.position:
            raise IkpyError(f"cannot go back to position {position}: {self.position} are in use")
        if position and not self._kept(position):
            raise IkpyError(
                f"cannot go back to position {position}: layers with a sliding window have dropped what came before; "
                "begin at 0, or set IKPY_SWA_FULL=1 to keep it"
            )
        self.position = position
        if not position:
            self._written = 0

    # ---- what a file of a session has (engine/cache/session_file.py)
    def holds(self, n: int) -> bool:
        """Whether the cache has all that a token at position n sees."""
        return 0 <= n <= self.position and (not n or self._kept(n))

    @property
    def written(self) -> int:
        """End of the positions written since the sequence began."""
        return self._written

    @property
    def angles(self) -> list[rope.Angles]:
        """Every table of rotations in use."""
        return list(self._angles)

    def restored(self, n: int, written: int) -> None:
        """The cells of n positions have been filled by others; `written`: as it was when they were saved."""
        self.position, self._written = n, written

    @property
    def experts_per_token(self) -> float:
        """Experts that a token used in a layer, on average since the model was opened; 0 without experts."""
        n_layers = sum(r.op == "route" and r.kernel.path == "moe.route.route" for r in self._program("gen")[0].records)
        rows = self.n_evaluated * n_layers
        return int(self._state[STATES.index(SLOTS), N_USED]) / rows if rows else 0.0

    def touched(self) -> tuple[int, int]:
        """(bytes of weights that one token reads, multiply-adds of its matrices): of the experts those it uses."""
        records = [r for r in self._program("gen")[0].records if r.op.startswith("matmul")]
        return sum(r.cost.bytes_once for r in records), sum(r.cost.flops_row for r in records) // 2

    def _left_alone(self) -> None:
        """In a forked child: what another thread was computing is not finished here, and its counters are not zero."""
        if self._busy in (0, threading.get_ident()):
            return
        self._busy, self.position = 0, self.position if self._kept(self.position) else 0
        self.kv.reset_counters()
        for program, _ in self._programs.values():
            program.words[:, CLAIM] = 0

    def close(self) -> None:
        """End the worker threads; computing is an IkpyError afterwards. A second call does nothing."""
        self._closing = True
        for pool in self._pools.values():
            pool.close()
        with self._lock:
            if not self._busy:  # else this is within an evaluation, which does it at its end
                self._free()

    def _free(self) -> None:
        """Let go of the file."""
        self._held.clear()
        if self.owns_file:
            self.file.close(self.tensors.values())

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _tell(progress, before: int, n: int, total: int, share: float) -> None:
    progress(before + int(share * n), total, "read prompt")
