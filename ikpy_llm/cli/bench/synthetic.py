"""The table of `ikpy-bench --synthetic`: which type is fastest on this CPU."""

from __future__ import annotations

from ikpy_llm.cli.bench import machine, report
from ikpy_llm.cli.bench.result import Result, Test, mean_and_deviation
from ikpy_llm.kernels import quants


class Summary(report.Writer):
    """A row per weight type (and set of parameters) as soon as all its tests are done; then the fastest."""

    def __init__(self, tests: list[Test], threads: bool = False, out=None):
        """threads: with a column of them, because there are several."""
        super().__init__(machine.BUILD, out=out)
        self.tests, self.threads, self.done, self.all = tests, threads, [], []

    def head(self, result: Result) -> None:
        head = [
            "type",
            "bits",
            "MB",
            *["threads"] * self.threads,
            *(text for test in self.tests for text in _titles(test)),
        ]
        self.widths = [max(9, len(head[0])), 6, 8, *(max(8, len(text)) for text in head[3:])]
        self.print(f"{result.model_type.rpartition(' ')[0]}, {result.n_threads} threads: {machine.line()}\n")
        self.line(head)
        self.print("| ", " | ".join("-" * (w - 1) + "-:"[i > 0] for i, w in enumerate(self.widths)), " |")

    def row(self, result: Result) -> None:
        if self.done and self.done[0].weight_type != result.weight_type:  # one of its tests could not be run
            self.done = []
        self.done.append(result)
        if len(self.done) < len(self.tests):
            return
        cells = [result.weight_type, f"{result.bits_per_weight:.2f}", f"{result.model_size / 1e6:.0f}"]
        cells += ["/".join(map(str, sorted({r.n_threads for r in self.done})))] * self.threads
        for test in self.tests:
            cells += _cells(next(r for r in self.done if r.run == test))
        self.line(cells)
        self.all += self.done
        self.done = []

    def line(self, cells: list[str]) -> None:
        padded = (f"{c:>{w}}" if i else f"{c:<{w}}" for i, (c, w) in enumerate(zip(cells, self.widths, strict=True)))
        self.print("| ", " | ".join(padded), " |")

    def end(self) -> None:
        if not self.all:
            return
        self.print()
        for test in self.tests:
            ranked = sorted((r for r in self.all if r.run == test), key=lambda r: -mean_and_deviation(r.samples_ts)[0])
            best = ", ".join(f"{_name(r, self.threads)} {mean_and_deviation(r.samples_ts)[0]:.1f}" for r in ranked[:3])
            self.print(f"fastest {test.name}: {best} t/s")
        for unit, values in roofs(self.all).items():
            self.print(f"roof: {min(values):.1f} to {max(values):.1f} {unit}")
        self.print(
            "shares: t/s x MACs of the layers / roof of products, and t/s x bytes of the model / read roof (of "
            "token_embd only one row is read: over 100% is possible), of experts only those that a token uses\n"
            "bound: the time that weights, cache and attention's products need at the roofs; medians of repetitions, "
            "each with the mean of the roofs right before and right after it"
        )


def roofs(results: list[Result]) -> dict[str, list[float]]:
    """Unit -> what was measured in it: products have a roof for quantized and another for float types."""
    found: dict[str, list[float]] = {}
    for r in results:
        found.setdefault("GB/s read", []).append(r.roof["gbps"])
        found.setdefault(f"GMAC/s {products(r)}", []).append(r.roof["gmacs"])
    return found


def products(r: Result) -> str:
    """What is multiplied in a model of this weight type."""
    return "f32" if r.weight_type in quants.names() and quants.get(r.weight_type).is_float else "u8 x s8"


def _name(r: Result, threads: bool) -> str:
    return r.weight_type + (f" ({r.n_threads} threads)" if threads else "")


def _titles(test: Test) -> list[str]:
    if test.n_gen == test.n_timed:
        return [f"{test.name} t/s", "GB/s", "share", "bound"]
    return [f"{test.name} t/s", *["share"] * (not test.n_gen), "bound"]


def _cells(r: Result) -> list[str]:
    rates, speed = r.rates(), f"{mean_and_deviation(r.samples_ts)[0]:.1f}"
    shares = [f"{rates[name]:.0%}" for name in ("model_share", "bound_share") if name in rates]
    return [speed, *[f"{rates['gbps']:.1f}"] * (r.run.n_gen == r.run.n_timed), *shares]
