"""Pictures of benchmarks: types against speed with the machine's roofs, and speed against depth of several runs."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from ikpy_llm.cli import bench_machine, bench_synthetic, sweep_rows
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


def pyplot():
    """matplotlib.pyplot, drawing into files."""
    try:
        import matplotlib
    except ImportError:
        raise IkpyError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def _save(figure, path: str) -> None:
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise IkpyError(f"--plot {Path(path)}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        pyplot().close(figure)


def _style(ax, title: str, x: str, y: str) -> None:
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


# --- types ---


def types(results: list, path: str) -> None:
    """Bits per weight against tokens per second of each test of one kind, a panel for each, with its roof."""
    plt, kinds = pyplot(), {}
    for r in results:
        if not r.run.n_prompt or not r.run.n_gen or r.run.gen_only:
            kinds.setdefault((r.run, r.n_threads), []).append(r)
    if not kinds:
        raise IkpyError("--plot: there is neither a prompt test nor a generation test to draw")
    figure, axes = plt.subplots(1, len(kinds), figsize=(7 * len(kinds), 6), squeeze=False, layout="constrained")
    for ax, ((test, threads), some) in zip(axes[0], kinds.items(), strict=True):
        _types_panel(ax, test, threads, some)
    first = results[0]
    figure.suptitle(f"{first.model_type.rpartition(' ')[0]} by weight type\n{bench_machine.line()}", fontsize=9)
    _save(figure, path)


def _types_panel(ax, test, threads: int, results: list) -> None:
    points, colours = [], {}
    for r in results:
        name, colour = next((n, c) for pattern, n, c in FAMILIES if re.match(pattern, r.weight_type))
        speed = statistics.fmean(r.samples_ts)
        ax.plot(r.bits_per_weight, speed, "o", color=colour, label=None if name in colours else name)
        colours[name] = colour
        points.append((r.bits_per_weight, speed, r.weight_type, colour))
    bits = [p[0] for p in points]
    if test.n_gen:
        table = statistics.median(r.model_size - r.idle_bytes - r.layer_macs * r.bits_per_weight / 8 for r in results)
        xs = [min(bits) + i * (max(bits) - min(bits)) / 50 for i in range(51)]
        gbps = statistics.median(r.roof["gbps"] for r in results)
        ys = [gbps * 1e9 / (results[0].layer_macs * x / 8 + table) for x in xs]
        ax.plot(xs, ys, "--", color="black", lw=1, label=f"all of the model at {gbps:.0f} GB/s")
    else:
        for unit, values in bench_synthetic.roofs(results).items():
            if unit.startswith("GMAC/s"):  # those of products may differ by type: none is above the highest
                y, style = max(values) * 1e9 / results[0].layer_macs, ":" if "f32" in unit else "--"
                ax.axhline(y, ls=style, color="black", lw=1, label=f"{max(values):.0f} {unit}")
    if max(bits) > 10 > min(bits):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.set_ylim(bottom=0)
    ax.margins(x=0.08)
    ax.set_ylim(top=ax.get_ylim()[1] * 1.05)
    _style(ax, f"{test.name}, {threads} thread{'s' * (threads > 1)}", "bits per weight", "tokens per second")
    ax.legend(fontsize=LABEL, loc="best", framealpha=0.6)
    _labels(ax, points)


def _labels(ax, points: list[tuple[float, float, str, str]]) -> None:
    """Names beside their points, each at the nearest place where no other name or point is."""
    ax.figure.draw_without_rendering()
    unit = ax.figure.dpi / 72  # pixels per point
    spots = [(ax.transData.transform(p[:2]), p) for p in points]
    taken = [(x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit) for (x, y), _ in spots]
    places = [(dx, dy) for r in (6, 12, 20, 30, 42) for dx, dy in ((r, -3), (-r, -3), (0, r), (0, -r - 6))]
    for (x, y), (_, _, text, colour) in spots:
        width, height = 0.62 * LABEL * len(text) * unit, 1.1 * LABEL * unit
        for dx, dy in places:
            align = "left" if dx > 0 else "right" if dx < 0 else "center"
            left = x + dx * unit - {"left": 0, "right": width, "center": width / 2}[align]
            box = (left, y + dy * unit, left + width, y + dy * unit + height)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                break
        taken.append(box)
        far = {"arrowprops": {"arrowstyle": "-", "color": colour, "lw": 0.5}} if abs(dx) + abs(dy) > 15 else {}
        where = {"textcoords": "offset points", "xytext": (dx, dy), "ha": align}
        ax.annotate(text, ax.transData.inverted().transform((x, y)), fontsize=LABEL, color=colour, **where, **far)


# --- depth ---
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #000000 #8c564b".split()
MARKERS = "os^Dv<>P"


def sweeps(runs: list, path: str) -> None:
    """Prompt and generation speed of sweep_rows.Runs against the positions in the cache, dashed their roofs."""
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
        handles.append(plt.Line2D([], [], ls=(0, (4, 3)), lw=1, color="gray"))
        texts.append(f"weights and {'attention' if 'bound_tg' in keys else 'cache'} at the machine's rates")
    where = {"loc": "outside lower center", "ncols": min(len(texts), 4), "frameon": False}
    figure.legend(handles, texts, fontsize=LABEL + 1, **where)
    machine = common.pop("machine", "")
    told = [sweep_rows.TOLD[key].format(value) for key, value in common.items() if key not in ("flash_attn",)]
    figure.suptitle(", ".join(told) + (f"\n{machine}" if machine else ""), fontsize=LABEL + 1)
    _save(figure, path)


def _sweep(ax, rows: list[dict], kind: str, name: str, colour: str, marker: str) -> None:
    """One run: the mean of each depth, a bar from least to most where it was measured more than once, and its roof."""
    speeds = sweep_rows.by_depth(rows, "speed_" + kind)
    depths, means = list(speeds), [statistics.fmean(v) for v in speeds.values()]
    every = max(1, len(depths) // 16)  # markers
    ax.plot(depths, means, "-", color=colour, marker=marker, markevery=every, ms=4.5, lw=1.8, label=name)
    for depth, values in speeds.items():
        if len(values) > 1:
            ax.plot([depth, depth], [min(values), max(values)], "-", color=colour, lw=4, alpha=0.3)
    roof = sweep_rows.by_depth(rows, "bound_" + kind) or sweep_rows.by_depth(rows, "roof_" + kind)
    if roof:
        ax.plot(list(roof), [statistics.fmean(v) for v in roof.values()], ls=(0, (4, 3)), lw=1, color=colour, alpha=0.7)


def _depth_ticks(ax, deepest: int) -> None:
    """Ticks at 256, 512, 1k (1024), 2k, ... so that there are four to nine."""
    step = 64
    while deepest / step > 8:
        step *= 2
    ax.set_xticks(range(0, deepest + step, step))
    ax.set_xlim(-0.02 * deepest, 1.02 * deepest or 1)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}k" if step >= 512 and x else f"{x:g}")
