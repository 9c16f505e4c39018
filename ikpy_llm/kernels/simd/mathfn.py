"""Elementary functions on f32 vectors, written with the portable ops. Errors are stated against float64."""

from __future__ import annotations

import numpy as np

from .ops import F32, I32V, bits, cast, fma, inline, maximum, minimum, rint, splat

_LOG2E, _LN2_HI, _LN2_LO = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)


@inline
def exp(x):
    """e^x for an F32 vector; relative error below 2e-7. Inputs are clamped to [-87.3, 88.3] (so e^-inf is about
    1e-38, not 0)."""
    x = minimum(maximum(x, splat(F32, np.float32(-87.3))), splat(F32, np.float32(88.3)))
    n = rint(x * _LOG2E)
    r = fma(n, splat(F32, -_LN2_LO), fma(n, splat(F32, -_LN2_HI), x))
    p = fma(splat(F32, np.float32(1.0 / 5040.0)), r, splat(F32, np.float32(1.0 / 720.0)))
    p = fma(p, r, splat(F32, np.float32(1.0 / 120.0)))
    p = fma(p, r, splat(F32, np.float32(1.0 / 24.0)))
    p = fma(p, r, splat(F32, np.float32(1.0 / 6.0)))
    p = fma(p, r, splat(F32, np.float32(0.5)))
    p = fma(p, r, splat(F32, np.float32(1.0)))
    p = fma(p, r, splat(F32, np.float32(1.0)))
    return p * bits(F32, (cast(I32V, n) + 127) << 23)


@inline
def silu(x):
    """x / (1 + e^-x)."""
    return x / (exp(-1.0 * x) + np.float32(1.0))


@inline
def gelu(x):
    """0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), the form ggml uses, computed as x / (1 + e^-2u)."""
    slope, cubic = np.float32(-2 * 0.7978845608028654), np.float32(-2 * 0.7978845608028654 * 0.044715)
    return x / (exp(x * fma(x * x, splat(F32, cubic), splat(F32, slope))) + np.float32(1.0))


@inline
def relu2(x):
    """max(x, 0)^2."""
    x = maximum(x, splat(F32, np.float32(0)))
    return x * x


@inline
def tanh(x):
    """tanh(x) as 1 - 2 / (1 + e^2x); absolute error below 2e-7."""
    return np.float32(1) - splat(F32, np.float32(2)) / (exp(np.float32(2) * x) + np.float32(1))


ACTS = {"silu": silu, "gelu": gelu, "relu2": relu2}
