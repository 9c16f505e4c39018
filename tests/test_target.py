"""Which target a machine gets, on machines that are not here: what LLVM and the system would say of them is faked."""

import logging
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from ikpy_llm.kernels.compiler import jit
from ikpy_llm.kernels.compiler.jit import JitError, Kernel
from ikpy_llm.kernels.simd import arm_features, target

ROOT = Path(__file__).parents[1]
HOST = target._host.__wrapped__  # as the first call of a process
LINUX, MACOS = "aarch64-unknown-linux-gnu", "arm64-apple-darwin23.6.0"
# What Linux puts into the auxiliary vector: fp, asimd, evtstrm, aes, pmull, sha1, sha2, crc32, and from Armv8.1 on
# atomics, fphp, asimdhp, cpuid, asimdrdm. dotprod is bit 20 of the first word, sve 22, i8mm bit 13 of the second.
ARMV8, ARMV81, DOTPROD, SVE, I8MM = 0xFF, 0x1FFF, 1 << 20, 1 << 22, 1 << 13
OF_LINUX = {"neon": True, "fp-armv8": True, "crc": True, "aes": True, "sha2": True}
OF_LINUX_81 = OF_LINUX | {"lse": True}
# name: platform, triple, LLVM's name of the CPU, LLVM's features, (AT_HWCAP, AT_HWCAP2) or sysctls; what is right
MACHINES = {
    "Cortex-A72 (Raspberry Pi 4)": ("linux", LINUX, "cortex-a72", OF_LINUX, (ARMV8, 0), "generic", ""),
    "Cortex-A76 (Raspberry Pi 5)": (
        "linux", LINUX, "cortex-a76", OF_LINUX_81, (ARMV81 | DOTPROD, 0), "neon", "dotprod",
    ),
    "Neoverse N1 (Graviton 2)": (
        "linux", LINUX, "neoverse-n1", OF_LINUX_81, (ARMV81 | DOTPROD, 0), "neon", "dotprod",
    ),
    "Neoverse V2 (Graviton 4)": (
        "linux", LINUX, "neoverse-v2", OF_LINUX_81 | {"sve": True, "sve2": True}, (ARMV81 | DOTPROD | SVE, I8MM | 2),
        "neon", "dotprod i8mm sve",
    ),
    "Neoverse V2 without SVE (a hypervisor)": (
        "linux", LINUX, "neoverse-v2", OF_LINUX_81, (ARMV81 | DOTPROD, I8MM), "neon", "dotprod i8mm",
    ),
    "Apple M2": ("darwin", MACOS, "apple-m2", {}, {"FEAT_DotProd": 1, "FEAT_I8MM": 1}, "neon", "dotprod i8mm"),
    "Apple M1": ("darwin", MACOS, "apple-m1", {}, {"FEAT_DotProd": 1, "FEAT_I8MM": 0}, "neon", "dotprod"),
    "unknown to the system": ("darwin", MACOS, "generic", {}, {}, "generic", ""),
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """Puts this process on a machine of MACHINES; returns the target it gets."""

    def enter(name):
        system, triple, cpu, features, told, *_ = MACHINES[name]
        monkeypatch.setattr(target.platform, "machine", lambda: "arm64" if system == "darwin" else "aarch64")
        monkeypatch.setattr(arm_features.sys, "platform", system)
        monkeypatch.setattr(llvm, "get_process_triple", lambda: triple)
        monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: cpu)
        monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: features)
        if system == "darwin":
            words = {f"hw.optional.arm.{key}": value for key, value in told.items()}
            monkeypatch.setattr(arm_features, "_sysctl", lambda key: words.get(key, 0))
        else:
            monkeypatch.setattr(arm_features, "_auxiliary", lambda entry: dict(zip((16, 26), told, strict=True))[entry])
        monkeypatch.setattr(target, "_host", HOST)
        for key in [key for key in os.environ if key.startswith(("IKPY_TARGET", "IKPY_EMULATE"))]:
            monkeypatch.delenv(key)
        return target.current.__wrapped__()

    return enter


def code_of(found, text):
    """Assembly of a function in LLVM's language, for a target."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    made = llvm.Target.from_triple(found.triple).create_target_machine(cpu=found.cpu, features=found.features, opt=3)
    return made.emit_assembly(llvm.parse_assembly(text))


def product(instruction):
    """A function with one dot product of 16 bytes."""
    name = f"llvm.aarch64.neon.{instruction}.v4i32.v16i8"
    return f"""
declare <4 x i32> @{name}(<4 x i32>, <16 x i8>, <16 x i8>)
define <4 x i32> @f(<4 x i32> %a, <16 x i8> %x, <16 x i8> %y) {{
  %z = call <4 x i32> @{name}(<4 x i32> %a, <16 x i8> %x, <16 x i8> %y)
  ret <4 x i32> %z
}}"""


@pytest.mark.parametrize("name", MACHINES)
def test_arm(name, machine):
    """The target, what native bodies may rely on, and that LLVM is told so: their instructions become code."""
    *_, expected, extra = MACHINES[name]
    found = machine(name)
    assert (found.name, found.here, found.lanes) == (expected, True, 4)
    assert target.runnable() == ["neon", "generic"][expected == "generic" :]
    told, extra = set(found.features.split(",")), set(extra.split())
    assert {"+" + f for f in extra} <= told
    assert {"-" + f for f in arm_features.FEATURES if f not in extra} <= told or name.startswith("unknown")
    assert {*arm_features.FEATURES} & found.isa == (extra if expected == "neon" else set())
    for feature, instruction in ("dotprod", "sdot"), ("i8mm", "usdot"):
        if feature in extra:
            assert re.search(rf"\t{instruction}(\.4s)?\tv0", code_of(found, product(instruction)))  # Apple's, others'


def test_hidden_sve_stays_unused(machine):
    """LLVM multiplies 64-bit lanes with SVE where it may: a hypervisor's guest must not."""
    text = "define <2 x i64> @f(<2 x i64> %x, <2 x i64> %y) {\n %z = mul <2 x i64> %x, %y\n ret <2 x i64> %z\n}"
    assert "z0.d" in code_of(machine("Neoverse V2 (Graviton 4)"), text)
    assert "z0.d" not in code_of(machine("Neoverse V2 without SVE (a hypervisor)"), text)


def test_every_machine_has_object_code_of_its_own(machine):
    keys = [machine(name).key for name in MACHINES]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", MACHINES)
def test_neon_where_it_is_asked_for(name, machine, monkeypatch):
    """IKPY_TARGET=neon is taken where the CPU can run it; elsewhere its code is refused with what is missing."""
    runs = machine(name).name == "neon"
    monkeypatch.setenv("IKPY_TARGET", "neon")
    found = target.current.__wrapped__()
    assert (found.name, found.here) == ("neon", runs)
    if not runs:
        monkeypatch.setattr(target, "current", lambda: found)
        with pytest.raises(JitError) as error:
            jit.load([Kernel("rows.rowwise.add")])
        text = "target neon cannot run on this CPU, which lacks dotprod; accepted are generic"
        assert str(error.value) == text


def test_x86_names_the_instruction_set(machine, monkeypatch):
    machine("Apple M2")
    assert target.lacks("avx2") == "the instruction set x86_64"
    monkeypatch.setattr(target.platform, "machine", lambda: "AMD64")
    assert target.lacks("neon") == "the instruction set aarch64"


@pytest.mark.parametrize("system", ["darwin", "win32", "freebsd14"])
def test_a_system_that_cannot_be_asked(system, monkeypatch, caplog):
    """One line in the log, and what every AArch64 CPU has."""
    monkeypatch.setattr(arm_features.sys, "platform", system)
    monkeypatch.setattr(arm_features.ctypes, "CDLL", lambda name: object())  # a C library without these functions
    monkeypatch.delattr(arm_features.ctypes, "windll", raising=False)
    with caplog.at_level(logging.INFO, "ikpy.target"):
        assert arm_features.found() == {"neon": True}
    [line] = caplog.messages
    assert line.startswith(f"{system} does not say which features this CPU has (")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux' auxiliary vector")
def test_the_auxiliary_vector_is_read():
    assert arm_features._auxiliary(6) == mmap.PAGESIZE
    assert arm_features._auxiliary(12345) == 0


WINDOWS = """
import llvmlite.binding as llvm
llvm.get_process_triple = lambda: "x86_64-pc-windows-msvc"
from ikpy_llm.kernels.compiler import compile, jit
for kernel in jit.Kernel("run.runner.work"), jit.Kernel("run.timed"):
    _, module = compile.build(kernel)
    print(*sorted(f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")))
"""


def test_windows_is_asked_by_its_own_names():
    """A function that the system lacks ends the process when the code is loaded."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", WINDOWS], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["SwitchToThread", "QueryPerformanceCounter QueryPerformanceFrequency"]
