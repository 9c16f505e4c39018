"""Which machine the kernels are compiled for. One target per process; the environment variable IKPY_TARGET forces it.
Imports no Numba."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass

from ikpy_llm.errors import IkpyError

from . import arm_features

# name -> (lanes of f32 in a vector, LLVM features the native bodies need, CPU and triple for code generation when
# this machine cannot run it)
_X86, _ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = _AVX2 + ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "avx512vbmi")
TARGETS = {
    "avx512": (16, _AVX512, "znver4", _X86),
    "avx2": (8, _AVX2, "x86-64-v3", _X86),
    "neon": (4, ("neon", "dotprod"), "neoverse-n1", _ARM),
    "generic": (4, (), None, None),
}


@dataclass(frozen=True)
class Target:
    """name; f32 lanes per vector; LLVM triple, CPU name and feature string; `isa`: features native bodies may
    rely on; `here`: this CPU can run it; `emulated`: compiled for this CPU, see emulated.py."""

    name: str
    lanes: int
    triple: str
    cpu: str
    features: str
    isa: frozenset[str]
    here: bool
    emulated: bool = False

    @property
    def pairs16(self) -> bool:
        """AVX2 without a dot-product instruction: pairs of u8 x s8 are added in 16 bits first."""
        return "avx2" in self.isa and not {"avxvnni", "avx512vnni"} & self.isa

    @property
    def key(self) -> str:
        """What object code depends on: part of the cache key."""
        kind = "|emulated " + ",".join(sorted(self.isa)) if self.emulated else ""
        return f"{self.name}|{self.triple}|{self.cpu}|{self.features}{kind}"

    @property
    def title(self) -> str:
        """The name for people and reports."""
        return self.name + " (emulated)" * self.emulated


def sums_in_16_bits(largest: int) -> int:
    """Vectors of codes up to `largest`, a power of two up to the 8 of a block, whose products with s8 add up in 16
    bits: each adds two to a number."""
    return min(8, 1 << (32767 // (2 * 127 * largest)).bit_length() - 1)


@functools.cache
def _host() -> tuple[str, str, dict[str, bool]]:
    import llvmlite.binding as llvm

    features = dict(llvm.get_host_cpu_features())
    if _is_arm():
        features |= arm_features.found()
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), features


def _is_arm() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


def lacks(name: str) -> str:
    """What keeps this CPU from running a target, as in "lacks ...": "" if nothing does."""
    _, need, _, triple = TARGETS[name]
    if triple and (triple == _ARM) != _is_arm():
        return "the instruction set " + triple.partition("-")[0]
    _, _, features = _host()
    return ", ".join(f for f in need if not features.get(f))


def runnable() -> list[str]:
    """Names of the targets this CPU can run, best first."""
    return [name for name in TARGETS if not lacks(name)]


@functools.cache
def current() -> Target:
    """The target of this process: IKPY_TARGET, or the best one this CPU runs. Raises IkpyError for an unknown name.
    For tests: IKPY_TARGET_NO_VNNI leaves AVX-VNNI out of avx2, IKPY_TARGET_I8MM adds i8mm to a foreign neon;
    IKPY_EMULATE takes all decisions as on the target (an avx2 has AVX-VNNI there) and compiles them for this CPU."""
    name = os.environ.get("IKPY_TARGET", "").strip().lower() or runnable()[0]
    if name not in TARGETS:
        raise IkpyError(f"IKPY_TARGET={name!r}: accepted are {', '.join(TARGETS)}")
    lanes, need, cross_cpu, cross_triple = TARGETS[name]
    triple, cpu, features = _host()
    if os.environ.get("IKPY_EMULATE"):
        return _emulated(name)
    if name not in runnable():  # code for a machine we are not on: its assembly can be checked, not run
        extra = ("i8mm",) if os.environ.get("IKPY_TARGET_I8MM") else ()
        need += extra
        return Target(name, lanes, cross_triple, cross_cpu, ",".join("+" + f for f in need), frozenset(need), False)
    on = {f for f, is_on in features.items() if is_on}
    if name == "avx2":  # no more than its name promises
        on -= {f for f in on if f.startswith("avx512")}
        if os.environ.get("IKPY_TARGET_NO_VNNI"):
            on.discard("avxvnni")
    isa = on | {*need} if name in ("avx512", "neon") else on & {*need, "avxvnni"} if name == "avx2" else set()
    # Every feature is named, on or off: a hypervisor may hide some that the CPU's model name implies. 512-bit values
    # stay whole on CPUs whose tuning prefers 256-bit code.
    off = {f for f in features if f not in on} | ({"prefer-256-bit"} if name == "avx512" else set())
    flags = ["+" + f for f in sorted(on)] + ["-" + f for f in sorted(off)]
    return Target(name, lanes, triple, cpu, ",".join(flags), frozenset(isa), True)


def _emulated(name: str) -> Target:
    """The target as written for a CPU that has it, compiled for this one."""
    lanes, need, _, _ = TARGETS[name]
    extra = {"avx2": ("avxvnni", "IKPY_TARGET_NO_VNNI", False), "neon": ("i8mm", "IKPY_TARGET_I8MM", True)}.get(name)
    if extra and bool(os.environ.get(extra[1])) == extra[2]:
        need += (extra[0],)
    triple, cpu, features = _host()
    flags = ",".join(sorted(("+" if on else "-") + f for f, on in features.items()))
    return Target(name, lanes, triple, cpu, flags, frozenset(need), here=True, emulated=True)
