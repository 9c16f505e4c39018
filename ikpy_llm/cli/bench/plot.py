"""Pictures of benchmarks: types against speed with the machine's roofs, and speed against depth of several runs."""

from __future__ import annotations

import io
import re
import statistics
from pathlib import Path

from ikpy_llm import files
from ikpy_llm.cli.bench import machine as bench_machine
from ikpy_llm.cli.bench import sweep_rows
from ikpy_llm.errors import IkpyError

FAMILIES = (  # types of one colour: pattern, name, colour
    (r"Q\d_[01]$|Q8_0$", "legacy", "#1f77b4"),
    (r"Q\d_K$", "k-quants", "#d62728"),
    (r"IQ\d_KT$", "trellis", "#9467bd"),
    (r"IQ\d_K", "ik", "#2ca02c"),
    (r"IQ", "i-quants", "#ff7f0e"),
    (r"", "others", "#7f7f7f"),
)
LABEL = 8  # points
ROOF_COLOUR = "#c8c8c8"
# How the formats of matplotlib start: PNG, JPEG, WebP, AVIF, GIF, TIFF, PDF, PostScript, SVG, PGF.
PICTURE = files.Kind(
    "a picture",
    rb"\x89PNG\r\n|\xff\xd8\xff|RIFF(?s:.{4})WEBP|(?s:.{4})ftypavi[fs]"
    rb"|GIF8|II\*\0|MM\0\*|%PDF-|%!PS|%% Creator: Matplotlib"
    rb"|(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!(--|DOCTYPE svg)[^>]*>\s*)*<svg\b",
)
WANTED = "pip install 'ikpy-llm[plot]'"


def pyplot():
    """matplotlib.pyplot, drawing into files."""
    try:
        import matplotlib
    except ImportError:
        raise IkpyError(f"--plot needs matplotlib: {WANTED}") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def adjust_text():
    """The function that moves labels apart."""
    try:
        from adjustText import adjust_text
    except ImportError:
        raise IkpyError(f"--plot of types needs adjustText: {WANTED}") from None
    return adjust_text


def _save(figure, path: str) -> None:
    """Write a picture in the format that the ending of the name says; PNG where it has none."""
    picture, kind = io.BytesIO(), Path(path).suffix[1:]
    try:
        figure.savefig(picture, dpi=120, format=kind or "png")
    except ValueError as error:
        raise IkpyError(f"--plot {path}: {error}") from None
    finally:
        pyplot().close(figure)
    files.write(path, picture.getvalue(), flag="--plot", kind=PICTURE, streams=True)


def _style(ax, title: str, x: str, y: str) -> None:
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


# --- types ---


def types(records: list[dict], path: str) -> None:
    """Bits per weight against tokens per second of each test of one kind, a panel for each: every type with the least
    and the most of its repetitions, and what the roofs measured beside them allow.

    records: of `ikpy-bench --synthetic -o json`, as bench_result.record and samples make them.
    """
    plt, kinds = pyplot(), {}
    for r in records:
        if (not r["n_prompt"] or not r["n_gen"]) and r.get("samples_roof_gbps"):
            kinds.setdefault((r["test"], r["n_threads"]), []).append(r)
    if not kinds:
        raise IkpyError("--plot: there is neither a prompt test nor a generation test to draw")
    size = (9 * len(kinds), 8)
    figure, axes = plt.subplots(1, len(kinds), figsize=size, squeeze=False, layout="constrained")
    for ax, ((test, threads), some) in zip(axes[0], kinds.items(), strict=True):
        _types_panel(ax, f"{test}, {threads} thread{'s' * (threads > 1)}", some)
    first = records[0]
    where = f"{bench_machine.line(first)}; {first['test_time'][:10]}"
    figure.suptitle(f"{first['model_type'].rpartition(' ')[0]} by weight type\n{where}", fontsize=10)
    _save(figure, path)


def roof_range(record: dict) -> tuple[float, float]:
    """Tokens per second at the lowest and at the highest roof measured beside the repetitions of a test: prompts are
    bound by multiply-adds, generation by the bytes it reads."""
    rate = "gbps" if record["n_gen"] else "gmacs"
    need, roofs = record[rate] / record["avg_ts"], record[f"samples_roof_{rate}"]
    return min(roofs) / need, max(roofs) / need


def _types_panel(ax, title: str, records: list[dict]) -> None:
    names, colours = [], {}
    for r in records:
        family, colour = next((n, c) for pattern, n, c in FAMILIES if re.match(pattern, r["weight_type"]))
        x, speeds, roof = r["bits_per_weight"], r["samples_ts"], roof_range(r)
        mean = statistics.fmean(speeds)
        ax.plot([x, x], roof, "-", color=ROOF_COLOUR, lw=9, alpha=0.5, solid_capstyle="butt", zorder=1)
        ax.plot([x, x], [min(speeds), max(speeds)], "-", color=colour, lw=1.5, alpha=0.7)
        ax.plot(x, mean, "o", ms=5, color=colour, label=None if family in colours else family)
        colours[family] = colour
        names.append((x, mean, r["weight_type"], colour))
    ax.plot([], [], "-", color=ROOF_COLOUR, lw=6, label="the machine's limit, lowest to highest beside each type")
    bits = [name[0] for name in names]
    if max(bits) > 10 > min(bits):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.margins(x=0.08)
    ax.set_ylim(bottom=0)
    ax.set_ylim(top=ax.get_ylim()[1] * 1.05)
    _style(ax, title, "bits per weight", "tokens per second")
    ax.legend(fontsize=LABEL, loc="best", framealpha=0.6)
    _labels(ax, names)


def _labels(ax, points: list[tuple[float, float, str, str]]) -> None:
    """Names beside their points, moved apart where they would cover each other."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground="white")]
    texts = [ax.text(x, y, name, fontsize=LABEL, color=colour, path_effects=halo) for x, y, name, colour in points]
    lines = {"arrowstyle": "-", "color": "gray", "lw": 0.5, "alpha": 0.7}
    xs, ys = ([p[i] for p in points] for i in (0, 1))
    adjust_text()(texts, x=xs, y=ys, ax=ax, arrowprops=lines, expand=(1.3, 1.5), time_lim=10, ensure_inside_axes=True)


# --- depth ---
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #000000 #8c564b".split()
MARKERS = "os^Dv<>P"


def sweeps(runs: list, path: str) -> None:
    """Prompt and generation speed of sweep_rows.Runs against the positions in the cache, as bands their roofs."""
    plt = pyplot()
    common, names = sweep_rows.in_common(runs), sweep_rows.labels(runs)
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.6), layout="constrained")
    for ax, kind, title in ((axes[0], "pp", "Prompt"), (axes[1], "tg", "Generation")):
        for i, (run, name) in enumerate(zip(runs, names, strict=True)):
            _sweep(ax, run.rows, kind, name, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        ax.set_ylim(bottom=0)
        ax.set_ylim(top=ax.get_ylim()[1] * 1.03)
        tokens = sorted({row[kind] for run in runs for row in run.rows})
        what = f", {' or '.join(map(str, tokens))} tokens" if len(tokens) < 3 else ""
        _style(ax, title + what, "positions in the cache (N_KV)", "tokens per second")
        _depth_ticks(ax, max(row["n_kv"] for run in runs for row in run.rows))
    handles, texts = axes[1].get_legend_handles_labels()
    keys = {key for run in runs for row in run.rows for key in row}
    if keys & {"roof_tg", "bound_tg"}:
        handles.append(plt.Rectangle((0, 0), 1, 1, color="gray", alpha=0.2, lw=0))
        what = "attention" if "bound_tg" in keys else "cache"
        texts.append(f"weights and {what} at the lowest and highest rates of the machine during the run")
    where = {"loc": "outside lower center", "ncols": min(len(texts), 4), "frameon": False}
    figure.legend(handles, texts, fontsize=LABEL + 1, **where)
    machine = common.pop("machine", "")
    told = [sweep_rows.TOLD[key].format(value) for key, value in common.items() if key not in ("flash_attn",)]
    figure.suptitle(", ".join(told) + (f"\n{machine}" if machine else ""), fontsize=LABEL + 1)
    _save(figure, path)


def _sweep(ax, rows: list[dict], kind: str, name: str, colour: str, marker: str) -> None:
    """One run: the mean of each depth, a bar from least to most where it was measured more than once, and as a band
    what the machine allows at the lowest and at the highest rates measured during the run."""
    speeds = sweep_rows.by_depth(rows, "speed_" + kind)
    depths, means = list(speeds), [statistics.fmean(v) for v in speeds.values()]
    every = max(1, len(depths) // 16)  # markers
    ax.plot(depths, means, "-", color=colour, marker=marker, markevery=every, ms=4.5, lw=1.8, label=name)
    for depth, values in speeds.items():
        if len(values) > 1:
            ax.plot([depth, depth], [min(values), max(values)], "-", color=colour, lw=4, alpha=0.3)
    if band := sweep_rows.limits(rows, kind):
        depths, low, high = zip(*band, strict=True)
        ax.fill_between(depths, low, high, color=colour, alpha=0.12, lw=0, zorder=1)


def _depth_ticks(ax, deepest: int) -> None:
    """Ticks at 256, 512, 1k (1024), 2k, ... so that there are four to nine."""
    step = 64
    while deepest / step > 8:
        step *= 2
    ax.set_xticks(range(0, deepest + step, step))
    ax.set_xlim(-0.02 * deepest, 1.02 * deepest or 1)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}k" if step >= 512 and x else f"{x:g}")
