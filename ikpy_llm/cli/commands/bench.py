"""measure tokens per second, as llama-bench does, and the share of this machine's roofs"""

import contextlib
import dataclasses
import itertools
import math
import sys
import time
import types
from collections.abc import Iterator

from ikpy_llm import files
from ikpy_llm.cli import console, overrides
from ikpy_llm.cli.bench import machine, report, run
from ikpy_llm.cli.bench.result import Result, Test, record, samples
from ikpy_llm.cli.model_file import listed, local, model_path
from ikpy_llm.cli.options import (
    ModelOptions,
    Pair,
    automatic,
    cache_type_flag,
    flag,
    flash_attn_flag,
    hadamard_flag,
    repack_flag,
    threads_batch_flag,
    threads_flag,
)
from ikpy_llm.errors import IkpyError

BATCH, UBATCH, MLA, AMB = 2048, 512, 3, 256
MOST_TESTS = 10_000  # of all combinations: one of a second each takes three hours
MOST_REPETITIONS = 100_000
FORMATS = tuple(report.FORMATS)


@dataclasses.dataclass
class Options(ModelOptions):
    """Flags of `ikpy-bench`. Lists are comma separated, ranges are 8-32, 8-32+8, 8-32*2; every combination is run."""

    WITHOUT_EFFECT = types.MappingProxyType({"--perf": 0, "--no-perf": 0})

    model: list[str] = flag([], "-m", "--model", metavar="FNAME", help="GGUF file(s); default: the demo model")
    hf_repo: list[str] = flag(
        [], "-hf", "-hfr", "--hf-repo", metavar="USER/REPO[:QUANT]", help="models of the Hugging Face hub, fetched once"
    )
    mla: list[int] = flag(
        [],
        "-mla",
        "--mla-use",
        "--mla-attn",
        env="MLA MLA_USE",
        metavar="N",
        minimum=0,
        maximum=3,
        help="as in ikpy-run (default: 3)",
    )
    n_prompt: list[int] = flag(
        [], "-p", "--n-prompt", metavar="N", minimum=0, help="prompt tokens, 0: none (default: 512)"
    )
    n_gen: list[int] = flag(
        [], "-n", "--n-gen", metavar="N", minimum=0, help="generated tokens, 0: none (default: 128)"
    )
    prompt_and_gen: list[Pair] = flag(
        [], "-pg", metavar="PP,TG", env="", help="prompt and generation in one time; pairs are separated by ;"
    )
    gen_after_prompt: list[Pair] = flag(
        [], "-gp", metavar="PP,TG", env="", help="generation after a prompt, timed alone"
    )
    depth: list[int] = flag([], "-d", "--n-depth", metavar="N", minimum=0, help="tokens before the test (default: 0)")
    threads: list[int] = threads_flag([])
    threads_batch: list[int] = threads_batch_flag([])
    threads_pairs: list[Pair] = flag(
        [],
        "-tgb",
        "--threads-gen-batch",
        metavar="GEN,BATCH",
        env="",
        help="worker threads of generation and of prompts; pairs: GEN,BATCH;...",
    )
    batch: list[int] = flag([], "-b", "--batch-size", env="BATCH", metavar="N", minimum=1, help="(default: 2048)")
    ubatch: list[int] = flag(
        [], "-ub", "--ubatch-size", env="UBATCH", metavar="N", minimum=1, help="tokens computed at once (default: 512)"
    )
    cache_type_k: list[str] = cache_type_flag([], "k", "keys")
    cache_type_v: list[str] = cache_type_flag([], "v", "values")
    khad: list[bool] = hadamard_flag([], "k", "keys and queries")
    vhad: list[bool] = hadamard_flag([], "v", "values")
    repack: list[bool] = repack_flag([], "weave weights into panels at load time (default: on where memory allows)")
    flash_attn: list[str] = flash_attn_flag([])
    repetitions: int | None = flag(
        None,
        "-r",
        "--repetitions",
        metavar="N",
        minimum=1,
        maximum=MOST_REPETITIONS,
        help="repetitions of each test (default: 5; --synthetic: 2)",
    )
    warmup: bool = flag(
        True, "-w", "--warmup", off=("--no-warmup",), bare=True, env="", help="one short run before each"
    )
    delay: float = flag(0.0, "--delay", metavar="SECONDS", minimum=0, maximum=86400, help="pause before each test")
    show_progress: bool = flag(
        False, "--progress", help="a line on stderr for every test, not only a bar on a terminal"
    )
    output: str = flag("md", "-o", "--output", choices=FORMATS, help="form of the results")
    output_err: str = flag("none", "-oe", "--output-err", choices=(*FORMATS, "none"), help="the same on stderr")
    compat: str = flag("ik", "--compat", choices=("ik", "llama"), help="whose llama-bench the output follows")
    roofline: bool = flag(
        False,
        "--roofline",
        help="measure this machine's read bandwidth and product rates around each repetition, and the share of them "
        "reached: roof, of what weights and cache need; bound, of what attention's products need besides",
    )
    profile: bool = flag(False, "--profile", help="where the time of a step goes, and the three things that limit it")
    synthetic: str | None = flag(
        None,
        "--synthetic",
        metavar="SIZE",
        help="no model file: generated weights, e.g. 0.4B, 7B, tiny, moe, mla (with --type)",
    )
    types: list[str] = flag(
        [], "--type", env="", metavar="TYPE", help="types of the generated weights: Q4_0,Q4_K or all (default: all)"
    )
    plot: str | None = flag(None, "--plot", metavar="FILE", env="", help="picture of --synthetic: speed against bits")


def main(options: Options) -> int:
    """Run every test of every combination; each result is printed when it is there. 1 where some could not be run."""
    if listed(options):
        return 0
    check(options)
    tests = tests_of(options)
    writers, results, failed = writers_of(options, tests), [], []
    with ended(writers):
        for result in results_of(options, tests, failed):
            results.append(result)
            for writer in writers:
                writer.add(result)
    if options.plot and results:
        from ikpy_llm.cli.bench import plot as bench_plot

        bench_plot.types([record(r, machine.BUILD) | samples(r) for r in results], options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)
    return int(bool(failed))


@contextlib.contextmanager
def ended(writers: list[report.Writer]) -> Iterator[None]:
    """Whatever happens inside, Ctrl-C too, what has been written is whole; not where nobody reads it any more."""
    try:
        yield
    except BrokenPipeError:
        raise
    except BaseException:
        for writer in writers:
            writer.end()
        raise
    for writer in writers:
        writer.end()


def check(options: Options) -> None:
    """Refuse what cannot be done before anything is loaded; say what is not done as asked."""
    if options.synthetic is None and (options.types or options.plot):
        raise IkpyError(
            f"{'--type' if options.types else '--plot'} needs --synthetic SIZE, for example --synthetic 0.4B"
        )
    if options.synthetic is not None and (options.model or options.hf_repo or options.model_url):
        raise IkpyError("--synthetic and a model file exclude each other")
    if options.plot:
        from ikpy_llm.cli.bench import plot as bench_plot

        bench_plot.pyplot()  # say now what is missing, not in two minutes
        bench_plot.adjust_text()
        files.check(options.plot, flag="--plot", kind=bench_plot.PICTURE, streams=True)
    options.repetitions = options.repetitions or (5 if options.synthetic is None else 2)


def tests_of(options: Options) -> list[Test]:
    """In llama-bench's order: for each depth prompts, generation, both."""
    synthetic, alone = options.synthetic is not None, options.prompt_and_gen or options.gen_after_prompt
    n_prompt = options.n_prompt or ([] if alone else [512])
    n_gen = options.n_gen or ([] if alone else [64 if synthetic else 128])
    tests, n_pairs = [], len(options.prompt_and_gen) + len(options.gen_after_prompt)
    n_tests = len(options.depth or [0]) * (len(n_prompt) + len(n_gen) + n_pairs) * n_setups(options)
    if n_tests > MOST_TESTS:
        raise IkpyError(
            f"all combinations are {n_tests} tests; up to {MOST_TESTS} are accepted: fewer values, or a step"
        )
    for depth in options.depth or [0]:
        tests += [Test(n, 0, depth) for n in n_prompt if n]
        tests += [Test(0, n, depth) for n in n_gen if n]
        tests += [Test(*pair, depth) for pair in options.prompt_and_gen if any(pair)]
        tests += [Test(*pair, depth, gen_only=True) for pair in options.gen_after_prompt if pair.second]
    if not tests:
        raise IkpyError("-p 0 -n 0: nothing to measure")
    return tests


def n_setups(o: Options) -> int:
    """How many combinations of models and parameters there are; --type all counts as one."""
    sources = len(o.types if o.synthetic is not None else o.model + o.hf_repo)
    threads = len(o.threads or [0]) * len(o.threads_batch or [0]) * bool(o.threads or o.threads_batch)
    cache = o.cache_type_k, o.cache_type_v, o.khad, o.vhad, o.flash_attn
    counts = sources, threads + len(o.threads_pairs), *map(len, (o.ubatch, o.batch, o.repack, o.mla, *cache))
    return math.prod(n or 1 for n in counts)


def writers_of(options: Options, tests: list[Test]) -> list[report.Writer]:
    """What prints the results: -o on stdout, -oe on stderr."""
    # llama-bench shows a parameter that is not its default everywhere.
    asked = {
        "n_batch": set(options.batch) - {BATCH},
        "n_ubatch": set(options.ubatch) - {UBATCH},
        "mla_attn": set(options.mla) - {MLA},
        "attn_max_batch": options.amb != AMB,
        "ser": options.ser,
        "repack": False in options.repack,
        "type_k": set(options.cache_type_k) - {"f16"},
        "type_v": set(options.cache_type_v) - {"f16"},
        "flash_attn": {"off", "0"} & set(options.flash_attn),
        **dict.fromkeys(report.MEASURED, options.roofline),
    }
    shown, found = {name for name, value in asked.items() if value}, []
    for name, out in ((options.output, sys.stdout), (options.output_err, sys.stderr)):
        kind = report.FORMATS.get(name)
        if name == "md" and options.synthetic is not None:
            from ikpy_llm.cli.bench.synthetic import Summary

            found.append(Summary(tests, len(options.threads + options.threads_batch + options.threads_pairs) > 1, out))
        elif kind:
            found.append(kind(machine.BUILD, shown, options.compat, out))
        if name == "md" and options.profile:
            found.append(Profiles(machine.BUILD, out=out))
    return found


class Profiles(report.Writer):
    """The profiles of all tests, after the table."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.texts = []

    def row(self, result: Result) -> None:
        self.texts.append(result.profile_text)

    def end(self) -> None:
        for text in self.texts:
            self.print("\n", text)


def results_of(options: Options, tests: list[Test], failed: list[str]) -> Iterator[Result]:
    """The finished tests: models, then parameters, then tests; a model is loaded again only where it has to be.

    What cannot be loaded or run is an error on stderr, once, and in `failed`; the others are measured.
    """
    n_ctx, number, session, loaded, held = max(t.n_positions for t in tests), 0, None, None, []
    setups = list(setups_of(options, tests))
    total, first = sum(len(some) for *_, some in setups), True
    try:
        for setup, n_batch, n_ubatch, some in setups:
            if setup != loaded:
                if session:
                    session.close()
                session, held, loaded = None, [], setup  # its memory is free before the next
                try:
                    with console.Progress() as progress:
                        session = setup.open(n_ctx, progress)
                except IkpyError as error:
                    fail(error, failed)
                else:
                    if first:
                        machine.note_load()
                    first = False
            for test in some:
                number += 1
                if session is None:
                    continue
                if options.show_progress:
                    console.say(f"ikpy-bench: benchmark {number}/{total}: {test.name}")
                try:
                    result = measure(session, test, n_batch, n_ubatch, options, held)
                except IkpyError as error:
                    fail(error, failed)
                    session.close()
                    session = None
                    continue
                yield result
    finally:
        if session:
            session.close()


def fail(error: IkpyError, failed: list[str]) -> None:
    """Say what went wrong, unless it was said."""
    if str(error) not in failed:
        console.error(str(error))
    failed.append(str(error))


def setups_of(options: Options, tests: list[Test]):
    """(Setup, n_batch, n_ubatch, tests) of every combination; 0 threads: the default."""
    given, batches = ([automatic(n) for n in numbers] for numbers in (options.threads, options.threads_batch))
    threads = [Pair(n, batch) for n in given or [0] for batch in batches or [n]]
    threads = [*(threads if options.threads or options.threads_batch else []), *options.threads_pairs]
    flash = [how not in ("off", "0") for how in options.flash_attn]
    for source, n_ubatch, n_batch, repack, *cache, mla, pair in itertools.product(
        sources_of(options),
        options.ubatch or [UBATCH],
        options.batch or [BATCH],
        options.repack or [None],
        options.cache_type_k or ["f16"],
        options.cache_type_v or ["f16"],
        options.khad or [False],
        options.vhad or [False],
        flash or [True],
        options.mla or [MLA],
        threads or [Pair(0, 0)],
    ):
        own = options.swa_full, mla, options.amb, options.ser
        kv = tuple(overrides.of(options).items())
        sizes = source, pair.first, min(n_ubatch, n_batch), repack, pair.second
        setup = run.Setup(*sizes, *own, override_kv=kv, cache=run.Cache(*cache), pp_requant=options.pp_requant)
        yield setup, n_batch, n_ubatch, tests


def sources_of(options: Options) -> list:
    """Paths of model files (None: the demo model), or synthetic files."""
    if options.synthetic is not None:
        from ikpy_llm.engine.file import synthetic

        shape, names = synthetic.shape_of(options.synthetic), synthetic.types_of(options.types or ["all"])
        synthetic.check_memory(shape, min(names, key=synthetic.bits_per_weight))  # if none fits, there is one error
        return [synthetic.SyntheticFile(name, shape) for name in names]
    if options.hf_file and len(options.hf_repo) > 1:
        raise IkpyError(f"-hff {options.hf_file} needs one -hf, not {len(options.hf_repo)}")
    wanted = [(repo, None) for repo in options.hf_repo] + [(None, options.model_url)] * (options.model_url is not None)
    if options.hf_file and not options.hf_repo:
        wanted = [(None, None)]  # which is refused
    fetched = [
        model_path(dataclasses.replace(options, model=None, hf_repo=repo, model_url=url)) for repo, url in wanted
    ]
    for name in options.model:
        local(name)
    return [*options.model, *fetched] or [None]


def measure(session, test: Test, n_batch: int, n_ubatch: int, options: Options, held: list[int]) -> Result:
    """Run one test, each repetition between two measurements of the roofs where those are wanted; held: run_test."""
    time.sleep(options.delay)
    with_roof = options.roofline or options.profile or options.synthetic is not None
    result = run.describe(session, test, n_batch, n_ubatch)
    if options.synthetic is not None:
        from ikpy_llm.engine.file.synthetic import bits_per_weight

        result.weight_type = session.file.type_name
        result.bits_per_weight = bits_per_weight(result.weight_type, session.file.shape.n_embd)
    with console.Progress(live=False) as progress:
        used = ["gen"] * bool(test.n_gen) + ["prompt"] * (test.n_gen < test.n_timed)
        roofs = run.Roofs(session, result.n_threads, used) if with_roof else None
        run.run_test(session, result, options.repetitions, options.warmup, progress, roofs, held)
        if options.profile:
            from ikpy_llm.cli.bench import profile as bench_profile

            held.clear()
            profile, roof = bench_profile.measured(lambda: run.profile_of(session, result), roofs)
            result.profile = profile.as_dict(roof)
            result.profile_text = bench_profile.table(profile, roof, f"{result.model_type}, {test.name}")
    return result
