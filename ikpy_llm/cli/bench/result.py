"""A benchmark result, and its record in the fields of llama-bench, of ik_llama.cpp or of llama.cpp."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

# The fields of both in their order; fields of ours follow, then the samples.
FIELDS = {
    "ik": (
        "build_commit build_number cuda vulkan metal sycl rpc gpu_blas blas cpu_info gpu_info model_filename "
        "model_type model_size model_n_params n_batch n_ubatch n_threads type_k type_v n_gpu_layers split_mode "
        "main_gpu no_kv_offload flash_attn mla_attn attn_max_batch ser reuse tensor_split use_mmap embeddings repack "
        "mqkv muge defer_experts fused_moe grouped_er no_fused_up_gate use_thp no_ooae rcache sas max_gpu cuda_params "
        "override_tensor n_prompt n_gen test_time avg_ns stddev_ns avg_ts stddev_ts test"
    ).split(),
    "llama": (
        "build_commit build_number cpu_info gpu_info backends model_filename model_type model_size model_n_params "
        "n_batch n_ubatch n_threads cpu_mask cpu_strict poll type_k type_v n_gpu_layers n_cpu_moe split_mode main_gpu "
        "no_kv_offload flash_attn devices tensor_split tensor_buft_overrides load_mode lazy_mode embeddings "
        "no_op_offload no_host repack fit_target fit_min_ctx n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts "
        "stddev_ts"
    ).split(),
}
RATES = ("gbps", "gmacs", "roof_gbps", "roof_gmacs", "roof_share", "bound_share", "model_share")
MACHINE = ("target", "cores_allowed", "memory_gib", "python", "numba", "llvmlite", "numpy", "load_average")
CONSTANT = {
    "build_number": 0, "rpc": "0", "gpu_info": "", "n_gpu_layers": 0, "split_mode": "layer", "main_gpu": 0,
    "flash_attn": True, "reuse": True, "tensor_split": "0.00", "max_gpu": 0, "cuda_params": "",
    "override_tensor": "none",
    "backends": "CPU", "cpu_mask": "0x0", "poll": 50, "n_cpu_moe": 0, "devices": "auto",
    "tensor_buft_overrides": "none", "lazy_mode": "none", "fit_target": 0, "fit_min_ctx": 0,
}  # fmt: skip

FILE_TYPES = {
    0: "all F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K - Medium",
    11: "Q3_K - Small", 12: "Q3_K - Medium", 13: "Q3_K - Large", 14: "Q4_K - Small", 15: "Q4_K - Medium",
    16: "Q5_K - Small", 17: "Q5_K - Medium", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


def file_type(number: int | None, tensors) -> str:
    """llama.cpp's name of a file type, or the type that most bytes of the file have."""
    if number in FILE_TYPES:
        return FILE_TYPES[number]
    sizes: dict[str, int] = {}
    for t in tensors:
        sizes[t.type_name] = sizes.get(t.type_name, 0) + t.n_bytes
    return max(sizes, key=sizes.get)


@dataclass(frozen=True)
class Test:
    """What is timed: n_prompt tokens at once, then n_gen one by one, after n_depth older ones.

    gen_only: the prompt is read, but not timed.
    """

    n_prompt: int
    n_gen: int
    n_depth: int = 0
    gen_only: bool = False

    __test__ = False  # pytest takes classes of this name for tests

    @property
    def name(self) -> str:
        """llama-bench's name: pp512, tg128, pp512+tg128, tg128@pp512, pp512 @ d4096"""
        parts = [f"pp{self.n_prompt}"] * (self.n_prompt > 0) + [f"tg{self.n_gen}"] * (self.n_gen > 0)
        text = "@".join(parts[::-1]) if self.gen_only else "+".join(parts)
        return text + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_timed(self) -> int:
        """Tokens whose time counts."""
        return self.n_gen if self.gen_only else self.n_prompt + self.n_gen

    @property
    def n_positions(self) -> int:
        """Context the test needs."""
        return self.n_depth + self.n_prompt + self.n_gen


@dataclass
class Result:
    """One test: what was run, and seconds per repetition. `bytes` and `macs` are of one whole repetition."""

    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    repack: bool
    run: Test
    test_time: str
    bytes: int
    macs: int
    layer_macs: int = 0  # of one token in the matrices of the layers
    idle_bytes: int = 0  # of the experts that a token does not use
    mla_attn: int = 0  # as -mla, 0 where attention is not latent
    attn_max_batch: int = 0  # MiB, as -amb
    ser: str = "-1,0"  # as -ser, that where all experts are used
    fused_moe: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: bool = True
    weight_type: str = ""  # of a synthetic model
    bits_per_weight: float | None = None
    needs: list = field(default_factory=list)  # engine.need.Need of every step of one repetition
    roofs: list[dict[str, float]] = field(default_factory=list)  # beside each repetition, where measured (roof.measure)
    machine: dict[str, object] = field(default_factory=dict)  # bench_machine.facts() before the test
    seconds: list[float] = field(default_factory=list)
    profile: dict | None = None
    profile_text: str = ""

    @property
    def n_prompt(self) -> int:
        return self.run.n_prompt

    @property
    def n_gen(self) -> int:
        return self.run.n_gen

    @property
    def n_depth(self) -> int:
        return self.run.n_depth

    @property
    def test(self) -> str:
        return self.run.name

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of every repetition."""
        return [self.run.n_timed / s for s in self.seconds]

    @property
    def roof(self) -> dict[str, float] | None:
        """{"gbps", "gmacs", ...} of this machine with as many threads: medians of `roofs`, None without."""
        if not self.roofs:
            return None
        return {name: statistics.median(r[name] for r in self.roofs) for name in self.roofs[0]}

    def shares(self, seconds: Callable[[dict[str, float]], float]) -> list[float]:
        """`seconds` at the roofs beside each repetition over the repetition's time."""
        return [seconds(roof) / s for roof, s in zip(self.roofs, self.seconds, strict=True)]

    @property
    def samples_share(self) -> list[float]:
        """Share of the roof that bounds the test, the higher one, of every repetition."""
        return self.shares(lambda roof: max(self.bytes / roof["gbps"], self.macs / roof["gmacs"]) / 1e9)

    @property
    def samples_bound_share(self) -> list[float]:
        """The same of the time that all needs of its steps take: of weights and, besides, of attention."""
        return self.shares(lambda roof: sum(need.seconds(roof) for need in self.needs)) if self.needs else []

    @property
    def samples_model_share(self) -> list[float]:
        """As peers are compared, of tests of one kind; [] for others.

        Tokens/s x MACs of the layers / dot roof, or tokens/s x bytes of the model (but for experts that a token does
        not use) / read roof, although of token_embd only one row is read.
        """
        n = self.run.n_timed
        if self.run.n_gen == n:
            return self.shares(lambda roof: n * (self.model_size - self.idle_bytes) / roof["gbps"] / 1e9)
        return [] if self.run.n_gen else self.shares(lambda roof: n * self.layer_macs / roof["gmacs"] / 1e9)

    def rates(self) -> dict[str, float]:
        """GB/s of weights and KV cache read, GMAC/s; with roofs those and the shares, medians of the repetitions'."""
        mean = statistics.fmean(self.seconds)
        rates = {"gbps": self.bytes / mean / 1e9, "gmacs": self.macs / mean / 1e9}
        if self.roof:
            rates |= {"roof_gbps": self.roof["gbps"], "roof_gmacs": self.roof["gmacs"]}
            shares = {
                "roof_share": self.samples_share,
                "bound_share": self.samples_bound_share,
                "model_share": self.samples_model_share,
            }
            rates |= {name: statistics.median(values) for name, values in shares.items() if values}
        return rates


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample (n - 1) standard deviation; 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def record(r: Result, build: str, compat: str = "ik") -> dict[str, object]:
    """The fields of a result: llama-bench's of dialect `compat` in their order, then ours."""
    ns = [round(s * 1e9) for s in r.seconds]
    (avg_ns, dev_ns), (avg_ts, dev_ts) = mean_and_deviation(ns), mean_and_deviation(r.samples_ts)
    names = FIELDS[compat]
    values = CONSTANT | {name: getattr(r, name) for name in names if hasattr(r, name)}
    values |= {"build_commit": build, "cpu_info": r.machine.get("cpu_info", ""), "use_mmap": not r.repack}
    values |= {"load_mode": "none" if r.repack else "mmap"}
    values |= {"avg_ns": round(avg_ns), "stddev_ns": round(dev_ns), "avg_ts": avg_ts, "stddev_ts": dev_ts}
    out = {name: values.get(name, False) for name in names}
    rates = r.rates()
    out |= {name: getattr(r, name) for name in ("n_depth", "test", "weight_type", "bits_per_weight")}
    out |= {name: rates.get(name) for name in RATES}
    return out | {name: r.machine.get(name) for name in MACHINE}


def samples(r: Result) -> dict[str, list]:
    """Times and speeds of all repetitions, with roofs what those were and the shares; they follow the record in json
    and jsonl."""
    found = {"samples_ns": [round(s * 1e9) for s in r.seconds], "samples_ts": r.samples_ts}
    if r.roofs:
        found |= {
            f"samples_{'roof_' * (name in ('gbps', 'gmacs'))}{name}": [x[name] for x in r.roofs] for name in r.roof
        }
        found |= {"samples_share": r.samples_share, "samples_bound_share": r.samples_bound_share}
    return found
