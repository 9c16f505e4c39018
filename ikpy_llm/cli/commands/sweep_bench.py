"""measure prompt and generation speed at growing depth, as llama-sweep-bench does"""

import dataclasses
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ikpy_llm.cli import bench_machine, bench_run, console
from ikpy_llm.cli.model_file import list_cache, model_path
from ikpy_llm.cli.options import ModelOptions, flag
from ikpy_llm.cli.sampler_flags import FLAGS_OF_TEXT
from ikpy_llm.errors import IkpyError

TITLES = ("PP", "TG", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s")
KEYS = ("pp", "tg", "n_kv", "t_pp", "speed_pp", "t_tg", "speed_tg")
MEMORY = ("RSS HWM", "VRAM delta")


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
    repetitions: int = flag(1, "-nrep", metavar="N", minimum=1, env="", help="measurements of the first row")
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
        help="earlier results (table or jsonl) to draw too; without -m only they",
    )
    files: list[str] = flag([], metavar="FILE", env="", help="more files for --compare")


def main(options: Options) -> None:
    """Run the sweep and print a row at a time; draw it and earlier ones."""
    if options.cache_list:
        return list_cache()
    if options.files and not options.compare:
        raise IkpyError(f"{options.files[0]}: result files follow --compare")
    earlier = {path: read_rows(path) for path in options.compare + options.files}
    if earlier and not options.plot:
        raise IkpyError("--compare draws: add --plot FILE")
    if options.plot:
        from ikpy_llm.cli import bench_plot

        bench_plot.pyplot()  # say now that it is missing, not after the sweep
    stems = [Path(path).stem for path in earlier]
    runs = {s if stems.count(s) == 1 else path: earlier[path] for s, path in zip(stems, earlier, strict=True)}
    if not earlier or options.model or options.hf_repo or options.model_url:
        name, rows = run(options)
        runs[name] = rows
    if options.plot:
        bench_plot.sweeps(runs, options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)
    return None


def run(options: Options) -> tuple[str, list[dict]]:
    """(name for a legend, rows) of the sweep, which is printed meanwhile."""
    if options.flash_attn in ("off", "0"):
        console.note("-fa off is ignored: attention is always fused")
    setup = bench_run.Setup(
        model_path(options),
        options.threads or 0,
        min(options.ubatch, options.batch),
        options.repack,
        options.threads_batch or 0,
        options.swa_full,
        options.mla,
        options.amb,
        options.ser,
    )
    with console.Progress() as progress:
        session = setup.open(options.n_ctx, progress)
    rows = []
    with session:
        head = {
            "n_kv_max": session.n_ctx,
            "n_batch": options.batch,
            "n_ubatch": options.ubatch,
            "flash_attn": 1,
            "n_gpu_layers": -1,
            "n_threads": session.n_threads,
            "n_threads_batch": session.n_threads_batch,
        }
        where = {"model_filename": str(session.file.path), "machine": bench_machine.line()}
        if options.output == "table":
            print_head(head, where, options.memory)
        for row in sweep(session, options):
            rows.append(row)
            print(table_row(row) if options.output == "table" else json_row(head | row | where), flush=True)
    return Path(where["model_filename"]).stem, rows


def sweep(session, options: Options) -> Iterator[dict]:
    """For every depth: tg tokens one by one, forgotten again, then a batch of pp tokens, which stays."""
    pp = min(options.ubatch, session.n_ctx)
    tg = options.n_gen or max(1, pp // 4)

    def tokens(n: int) -> list[int]:
        return [random.randrange(session.n_vocab) for _ in range(n)]

    def timed(ids: list[int], step: int) -> float:
        started = time.perf_counter()
        for at in range(0, len(ids), step):
            session.eval(ids[at : at + step])
        return time.perf_counter() - started

    timed(tokens(1), 1)
    if options.warmup_batch:
        session.rewind(0)
        timed(tokens(pp), options.batch)
    session.rewind(0)
    for i, n_kv in enumerate(range(0, session.n_ctx - max(pp, tg) + 1, pp)):
        if i % options.stride:
            timed(tokens(pp), options.batch)
            continue
        for _ in range(options.repetitions if i == 0 else 1):
            session.rewind(n_kv)
            t_tg = timed(tokens(tg), 1)
            session.rewind(n_kv)
            t_pp = timed(tokens(pp), options.batch)
            values = (pp, tg, n_kv, t_pp, pp / t_pp, t_tg, tg / t_tg)
            row = dict(zip(KEYS, values, strict=True))
            yield row | ({"rss_hwm_mib": peak_memory(), "vram_delta_mib": None} if options.memory else {})


def peak_memory() -> float | None:
    """The most resident memory this process has had, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# --- what is printed, and read again ---


def print_head(head: dict, where: dict, memory: bool) -> None:
    """llama-sweep-bench's head, with a line about model and machine."""
    print("\nmain: " + ", ".join(f"{name} = {value}" for name, value in head.items()))
    print(f"main: {where['model_filename']}; {where['machine']}\n")
    widths = [6, 6, 6, 8, 8, 8, 8] + [10, 10] * memory
    titles = TITLES + MEMORY * memory
    print("|" + " | ".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (w + 1 + (i > 0)) for i, w in enumerate(widths)) + "|", flush=True)


def table_row(row: dict) -> str:
    """A row in llama-sweep-bench's widths."""
    text = "|{pp:6d} | {tg:6d} | {n_kv:6d} | {t_pp:8.3f} | {speed_pp:8.2f} | {t_tg:8.3f} | {speed_tg:8.2f} |"
    if "rss_hwm_mib" in row:
        text += f" {'n/a' if row['rss_hwm_mib'] is None else format(row['rss_hwm_mib'], '.1f'):>10} | {'n/a':>10} |"
    return text.format(**row)


def json_row(fields: dict) -> str:
    """A line of jsonl: floats with six decimals, a space before the brace."""
    parts = (f'"{k}": {f"{v:.6f}" if isinstance(v, float) else json.dumps(v)}' for k, v in fields.items())
    return "{" + ", ".join(parts) + " }"


def read_rows(path: str) -> list[dict]:
    """Rows of an earlier sweep, ours or ik_llama.cpp's: jsonl, or the table among whatever lines."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise IkpyError(f"--compare {path}: {error.strerror}") from None
    rows = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("{"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and all(isinstance(row.get(key), (int, float)) for key in KEYS):
                rows.append(row)
        elif line.startswith("|") and len(cells) >= len(KEYS) and all(re.fullmatch(r"[\d.]+", c) for c in cells[:7]):
            values = [int(c) if i < 3 else float(c) for i, c in enumerate(cells[:7])]
            rows.append(dict(zip(KEYS, values, strict=True)))
    if not rows:
        raise IkpyError(f"--compare {path}: no rows of a sweep; the table or jsonl of a sweep-bench is accepted")
    return rows
