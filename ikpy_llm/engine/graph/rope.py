"""Tables of rotation angles: computed once in float64, so that kernels only multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

POSITIONS = 1 << 14  # computed at once: in float64 all of a long context would take four times the table


@dataclass(frozen=True)
class Yarn:
    """How far each frequency is stretched: not at all above `fast` turns within n_ctx positions (of the training),
    by the factor below `slow` turns, in proportion between. `mix` is the part of this that counts (1: all).
    """

    n_ctx: int
    fast: float = 32.0
    slow: float = 1.0
    mix: float = 1.0

    def unstretched(self, n_rot: int, base: float) -> np.ndarray:
        """float64 (n_rot / 2,): part of the unstretched angle in that of each pair, 0 to 1."""

        def pair(turns: float) -> float:  # the pair that turns so often
            return n_rot * math.log(self.n_ctx / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(0.0, math.floor(pair(self.fast))), min(n_rot - 1.0, math.ceil(pair(self.slow)))
        ramp = (np.arange(n_rot // 2) - low) / max(0.001, high - low)
        return (1 - np.clip(ramp, 0, 1)) * self.mix


def growth(factor: float, log_mul: float = 0.1) -> float:
    """What yarn multiplies q and k by, as longer contexts would otherwise flatten the softmax."""
    return 1 + log_mul * math.log(max(1.0, factor))


@dataclass(frozen=True)
class Angles:
    """Column pair i of n_rot / 2 turns by pos / factor * base ** (-2 i / n_rot) / freqs[i], and grows by `scale`.

    `freqs` names a tensor or is empty; with `yarn` the factor differs by pair.
    """

    n_rot: int
    base: float
    factor: float = 1.0
    freqs: str = ""
    scale: float = 1.0
    yarn: Yarn | None = None


def table(angles: Angles, n_ctx: int, freqs: np.ndarray | None = None) -> np.ndarray:
    """float32 (n_ctx, n_rot / 2, 2): cosine and sine for every position."""
    i, scale = np.arange(angles.n_rot // 2), angles.scale
    frequency = angles.base ** (-2.0 * i / angles.n_rot)
    if freqs is not None:
        frequency = frequency / freqs.astype(np.float64)
    stretched = frequency / angles.factor
    if angles.yarn and angles.yarn.mix:
        part = angles.yarn.unstretched(angles.n_rot, angles.base)
        stretched = stretched * (1 - part) + frequency * part
        scale *= growth(angles.factor)
    out = np.empty((n_ctx, len(i), 2), np.float32)
    for start in range(0, n_ctx, POSITIONS):
        part = out[start : start + POSITIONS]
        turn = np.arange(start, start + len(part), dtype=np.float64)[:, None] * stretched
        part[..., 0], part[..., 1] = np.cos(turn) * scale, np.sin(turn) * scale
    return out


def of_graph(graph) -> list[Angles]:
    """Every table of rotations that a model uses."""
    return list(dict.fromkeys(op.attrs["angles"] for op in graph.ops if "angles" in op.attrs))
