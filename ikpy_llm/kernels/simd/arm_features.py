"""Features of an AArch64 CPU that LLVM does not find out by itself: those that native bodies rely on, and SVE, which a
hypervisor may hide although the CPU's model name implies it. Imports no Numba."""

from __future__ import annotations

import ctypes
import logging
import sys

log = logging.getLogger("ikpy.target")
_HWCAP, _HWCAP2 = 16, 26  # entries of Linux's auxiliary vector
# LLVM's name of a feature: (entry, bit) on Linux, sysctl on macOS (no CPU there has SVE), and the number that
# IsProcessorFeaturePresent takes on Windows
FEATURES = {
    "dotprod": ((_HWCAP, 20), "hw.optional.arm.FEAT_DotProd", 43),
    "i8mm": ((_HWCAP2, 13), "hw.optional.arm.FEAT_I8MM", 66),
    "sve": ((_HWCAP, 22), None, 46),
}


def found() -> dict[str, bool]:
    """LLVM's names of these features and whether the CPU has them; of a system that cannot be asked only what every
    AArch64 CPU has."""
    features = {"neon": True}
    try:
        for name, (bit, sysctl, number) in FEATURES.items():
            if sys.platform == "darwin":
                features[name] = sysctl is not None and _sysctl(sysctl) == 1
            elif sys.platform == "win32":
                features[name] = bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(number))
            else:
                features[name] = bool(_auxiliary(bit[0]) >> bit[1] & 1)
    except (OSError, AttributeError) as error:  # no such library, no such function
        log.info("%s does not say which features this CPU has (%s): no kernel uses dotprod", sys.platform, error)
        return {"neon": True}
    return features


def _auxiliary(entry: int) -> int:
    """A word that the kernel hands to each process; 0 if there is none."""
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return getauxval(entry)


def _sysctl(name: str) -> int:
    """An integer of macOS's kernel; 0 if it does not know the name."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    sysctlbyname = ctypes.CDLL(None).sysctlbyname
    sysctlbyname.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    failed = sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value
