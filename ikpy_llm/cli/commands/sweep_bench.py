"""measure prompt and generation speed at growing depth, as llama-sweep-bench does"""

import dataclasses
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ikpy_llm import files
from ikpy_llm.cli import console, overrides
from ikpy_llm.cli.bench import machine, sweep_rows
from ikpy_llm.cli.bench import run as bench_run
from ikpy_llm.cli.bench.result import Test
from ikpy_llm.cli.bench.sweep_rows import KEYS, Run
from ikpy_llm.cli.model_file import listed, model_path
from ikpy_llm.cli.options import ModelOptions, automatic, flag
from ikpy_llm.cli.sampler_flags import FLAGS_OF_TEXT
from ikpy_llm.errors import IkpyError


@dataclasses.dataclass
class Options(ModelOptions):
    """Flags of `ikpy-sweep-bench`."""

    WITHOUT_EFFECT = FLAGS_OF_TEXT  # random tokens are measured; scripts pass the flags of a run along

    n_ctx: int | None = flag(
        None, "-c", "--ctx-size", metavar="N", minimum=0, help="length of the sweep (default: 4096)"
    )
    n_gen: int | None = flag(
        None,
        "-n",
        "--predict",
        "--n-predict",
        metavar="N",
        minimum=1,
        env="",
        help="tokens generated (default: -ub / 4)",
    )
    repetitions: int = flag(
        1, "-nrep", metavar="N", minimum=1, maximum=100_000, env="", help="measurements of the first row"
    )
    warmup_batch: bool = flag(False, "-wb", "--warmup-batch", bare=True, env="", help="warm up with a whole batch too")
    stride: int = flag(1, "--sweep-stride", metavar="N", minimum=1, env="", help="measure every Nth row")
    memory: bool = flag(False, "--sweep-memory", env="", help="show the most memory the process has had")
    output: str = flag("table", "-o", "--output-format", choices=("table", "jsonl"), help="form of the results")
    plot: str | None = flag(None, "--plot", metavar="FILE", env="", help="picture of both speeds against the depth")
    compare: list[str] = flag(
        [],
        "--compare",
        metavar="FILE",
        env="",
        help="earlier results (table or jsonl) to draw too, or without --plot to print side by side; without -m only "
        "they",
    )
    files: list[str] = flag([], metavar="FILE", env="", help="more files for --compare")


def main(options: Options) -> None:
    """Run the sweep and print a row at a time; draw it and earlier ones."""
    if listed(options):
        return
    if options.files and not options.compare:
        raise IkpyError(f"{options.files[0]}: result files follow --compare")
    runs = [sweep_rows.read_run(path) for path in options.compare + options.files]
    if options.plot:
        from ikpy_llm.cli.bench import plot as bench_plot

        bench_plot.pyplot()  # say now that it is missing, not after the sweep
        files.check(options.plot, flag="--plot", kind=bench_plot.PICTURE, streams=True)
    if not runs or options.model or options.hf_repo or options.model_url:
        runs.append(run(options))
    if options.plot:
        bench_plot.sweeps(runs, options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)
    elif options.compare:
        print(sweep_rows.comparison(runs))


def run(options: Options) -> Run:
    """The sweep, which is printed meanwhile."""
    flash = options.flash_attn not in ("off", "0")
    setup = bench_run.Setup(
        model_path(options),
        automatic(options.threads) or 0,
        min(options.ubatch, options.batch),
        options.repack,
        automatic(options.threads_batch) or 0,
        options.swa_full,
        options.mla,
        options.amb,
        options.ser,
        override_kv=tuple(overrides.of(options).items()),
        cache=bench_run.Cache(options.cache_type_k, options.cache_type_v, options.khad, options.vhad, flash),
        pp_requant=options.pp_requant,
    )
    with console.Progress() as progress:
        session = setup.open(options.n_ctx, progress)
    rows = []
    with session:
        pp, tg = sizes(session, options)
        if max(pp, tg) > session.n_ctx:
            raise IkpyError(
                f"-n {tg} does not fit into the context of {session.n_ctx} positions; choose a larger one (-c) or fewer"
            )
        head = {
            "n_kv_max": session.n_ctx,
            "n_batch": options.batch,
            "n_ubatch": options.ubatch,
            "flash_attn": int(flash),
            "n_gpu_layers": -1,
            "n_threads": session.n_threads,
            "n_threads_batch": session.n_threads_batch,
        }
        where = {"model_filename": str(session.file.path), "machine": machine.line(), **kv_types(session)}
        roofs, table = bench_run.Roofs(session, session.n_threads), options.output == "table"
        if table:
            sweep_rows.print_head(head, where | rates_of(roofs.measure()), options.memory)
        for row, roof in sweep(session, options, roofs.measure):
            rows.append(row | speeds(session, row, roof, options.ubatch))
            line = head | rows[-1] | where | rates_of(roof)
            print(sweep_rows.table_row(rows[-1]) if table else sweep_rows.json_row(line), flush=True)
    facts = sweep_rows.facts_of(head | where)
    return Run(Path(where["model_filename"]).stem, rows, facts)


def kv_types(session) -> dict[str, str]:
    """Types of the cache, with -khad and -vhad."""
    o = session.options
    return {"type_k": o.cache_type_k + " -khad" * o.khad, "type_v": o.cache_type_v + " -vhad" * o.vhad}


def rates_of(roof: dict[str, float]) -> dict[str, float]:
    """What a line says of the machine."""
    return {f"roof_{name}": roof[name] for name in ("gbps", "gmacs")}


def speeds(session, row: dict, roof: dict[str, float], ubatch: int) -> dict[str, float]:
    """Tokens per second of both tests at the machine's rates: roof_ of what weights and cache need, bound_ with
    attention's products besides.
    """
    out = {}
    for name, test in (("pp", Test(row["pp"], 0, row["n_kv"])), ("tg", Test(0, row["tg"], row["n_kv"]))):
        work = bench_run.work(session, test, ubatch)
        seconds = max(work["bytes"] / roof["gbps"], work["macs"] / roof["gmacs"]) / 1e9
        out["roof_" + name] = test.n_timed / seconds
        out["bound_" + name] = test.n_timed / sum(need.seconds(roof) for need in work["needs"])
    return out


def sizes(session, options: Options) -> tuple[int, int]:
    """Tokens of a prompt's step, and tokens generated at each depth."""
    pp = min(options.ubatch, session.n_ctx)
    return pp, options.n_gen or max(1, pp // 4)


def sweep(session, options: Options, measure: Callable[[], dict]) -> Iterator[tuple[dict, dict]]:
    """For every depth: tg tokens one by one, forgotten again, then a batch of pp tokens, which stays. The row, and the
    machine's rates beside it: means of what `measure` says before and after.
    """
    pp, tg = sizes(session, options)

    def tokens(n: int) -> list[int]:
        return [random.randrange(session.n_vocab) for _ in range(n)]

    def timed(ids: list[int], step: int) -> float:
        started = time.perf_counter()
        for at in range(0, len(ids), step):
            session.eval(ids[at : at + step])
        return time.perf_counter() - started

    bar = console.Bar()
    timed(tokens(1), 1)
    if options.warmup_batch:
        session.rewind(0)
        timed(tokens(pp), options.batch)
    session.rewind(0)
    depths = range(0, session.n_ctx - max(pp, tg) + 1, pp)
    try:
        for i, n_kv in enumerate(depths):
            bar.show(i, len(depths), f"N_KV {n_kv}")
            if i % options.stride:
                timed(tokens(pp), options.batch)
                continue
            before = measure()
            for _ in range(options.repetitions if i == 0 else 1):
                session.rewind(n_kv)
                t_tg = timed(tokens(tg), 1)
                session.rewind(n_kv)
                t_pp = timed(tokens(pp), options.batch)
                values = (pp, tg, n_kv, t_pp, pp / t_pp, t_tg, tg / t_tg)
                row = dict(zip(KEYS, values, strict=True))
                row |= {"rss_hwm_mib": peak_memory(), "vram_delta_mib": None} if options.memory else {}
                after = measure()
                bar.clear()
                yield row, bench_run.between(before, after)
                before = after
    finally:  # after Ctrl-C too
        bar.clear()


def peak_memory() -> float | None:
    """The most resident memory this process has had, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
