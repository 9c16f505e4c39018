"""A profile for people: a table of the kinds of records, and the three things that limit the run."""

from __future__ import annotations

import json

from ikpy_llm import files

PROFILE = files.Kind("a profile", rb'\s*\{\s*"(prompt|generation)"\s*:\s*\{')


def table(profile, roof: dict[str, float], title: str = "") -> str:
    """Lines of text; every figure is of one step."""
    p = profile
    what = "1 token" if p.n_tokens == 1 else f"{p.n_tokens} tokens"
    after = f" after {p.depth}" if p.depth else ""
    head = f"profile{' of ' + title if title else ''}: a step of {what}{after}, {p.seconds * 1e3:.2f} ms, "
    head += f"{p.n_threads} threads; roofs {roof['gbps']:.1f} GB/s, {roof['gmacs']:.0f} GMAC/s"
    lines = [head, "", f"| {'what':28} |     n |       us |  time |       MB |    GFLOP |    GB/s | GMAC/s |   roof |"]
    lines.append(f"| {'-' * 28} | ----: | -------: | ----: | -------: | -------: | ------: | -----: | -----: |")
    for x in p.lines:
        rates = f"{x.bytes / 1e6:8.2f} | {x.flops / 1e9:8.3f} | {x.gbps:7.1f} | {x.gflops / 2:6.0f}"
        lines.append(_row(f"{x.name} {x.type}", x.n, x.seconds, p.seconds, rates, f"{x.share(roof):.0%}"))
    blank = " " * 8 + " | " + " " * 8 + " | " + " " * 7 + " | " + " " * 6
    lines.append(_row("waiting at barriers", "", p.waiting, p.seconds, blank, ""))
    lines.append(_row("outside the machine code", "", p.outside, p.seconds, blank, ""))
    from ikpy_llm.engine.measure import trace

    limits = [f"{i}. {text}" for i, text in enumerate(trace.limits(p, roof), 1)]
    return "\n".join([*lines, "", "what limits it:", *limits])


def _row(name: str, n, seconds: float, of: float, rates: str, share: str) -> str:
    return f"| {name:28} | {n:>5} | {seconds * 1e6:8.1f} | {seconds / of:5.1%} | {rates} | {share:>6} |"


def of_session(session, n_prompt: int, target: str) -> str:
    """Profile of a prompt step and of a generated token, after what the session did; text, and JSON in `target`.

    `target`: a file name, or "-" for the text alone. The sequence is lost.
    """
    from ikpy_llm.cli.bench import run as bench_run
    from ikpy_llm.engine.measure import trace

    depth = min(session.position, session.n_ctx - 1)
    parts = {"prompt": (n_prompt, 0)} if n_prompt > 1 else {}
    parts["generation"] = (1, depth)
    roofs = bench_run.Roofs(session, max(session.n_threads, session.n_threads_batch))
    found, limits = measured(lambda: {name: trace.profile(session, *step) for name, step in parts.items()}, roofs)
    if target != "-":
        write_json(target, {name: p.as_dict(limits) for name, p in found.items()})
    return "\n\n".join(table(p, limits, name) for name, p in found.items())


def measured(run, roofs) -> tuple[object, dict[str, float]]:
    """What `run` returns, and the roofs around it: the higher, because a profile is that of the fastest step."""
    before = roofs.measure()
    found, after = run(), roofs.measure()
    return found, {name: max(before[name], after[name]) for name in after}


def write_json(path: str, data) -> None:
    """Write a file; IkpyError where that is not possible."""
    files.write(path, (json.dumps(data, indent=1) + "\n").encode(), flag="--profile", kind=PROFILE, streams=True)
