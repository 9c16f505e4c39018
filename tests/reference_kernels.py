"""NumPy oracles of the matrix kernels: the activation quantizer, products and their error bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reference_formats import FLOAT_MINS, FORMATS, INT_MINS, SUB, Weights

SLICE = 256  # columns of activations that share one float scale
MIN_UNIT = 8  # sums that meet integer minimums are kept in units of 1/8
U = 2.0**-24  # largest relative error of one float32 rounding


def _f(x):
    return x.astype(np.float64)


# ---------------------------------------------------------------- activations
@dataclass
class Acts:
    """x = codes * 2^-e * d. codes int64 [n][k], e int64 [n][k/32], d float32 [n][slices]."""

    codes: np.ndarray
    e: np.ndarray
    d: np.ndarray

    @property
    def step(self):
        """Value of code 1, float64 [n][k]."""
        k = self.codes.shape[1]
        d = np.repeat(_f(self.d), SLICE, axis=1)[:, :k]
        return d * 2.0 ** -np.repeat(self.e, 32, axis=1)

    @property
    def values(self):
        return self.codes * self.step

    def sums(self, sub: int):
        """Sums of `sub` codes, int64 [n][k/sub]."""
        return self.codes.reshape(len(self.codes), -1, sub).sum(-1)

    def scaled_sums(self, sub: int):
        """Sums times 2^-e, exact in float32."""
        return (self.sums(sub) * 2.0 ** -np.repeat(self.e, 32 // sub, axis=1)).astype(np.float32)

    def fixed_sums(self, sub: int):
        """Sums times 2^-e in units of 1/MIN_UNIT, rounded half to even."""
        return np.rint(self.scaled_sums(sub) * MIN_UNIT).astype(np.int16)

    @property
    def magic(self):
        return (1.5 * 2.0 ** (23 - self.e)).astype(np.float32)

    def starts(self, zero: int, sub: int):
        """Where an integer accumulator starts: bits of magic, minus zero times the sum of codes."""
        return np.repeat(self.magic.view(np.int32), 32 // sub, axis=1) - zero * self.sums(sub)


def quantize(x: np.ndarray) -> Acts:
    """float32 [n][k], k a multiple of 32, every step rounded to float32."""
    f32 = np.float32
    n, k = x.shape
    codes, e, d = np.zeros((n, k), np.int64), np.zeros((n, k // 32), np.int64), np.zeros((n, -(-k // SLICE)), f32)
    for row in range(n):
        for s in range(0, k, SLICE):
            amax = np.abs(x[row, s : s + SLICE]).max()
            if not amax > f32(1e-30):
                continue
            d[row, s // SLICE] = amax * f32(1 / 127)
            for b in range(s, min(s + SLICE, k), 32):
                block = x[row, b : b + 32]
                top = np.abs(block).max()
                if top > 0:
                    with np.errstate(over="ignore"):
                        ratio = amax / top
                    e[row, b // 32] = min(np.frexp(ratio)[1] - 1, 15) if np.isfinite(ratio) else 15
                up = f32(127) / amax * f32(2.0 ** e[row, b // 32])
                codes[row, b : b + 32] = np.clip(np.rint(block * up), -127, 127)
    return Acts(codes, e, d)


# ---------------------------------------------------------------- products
def product(w: Weights, acts: Acts) -> tuple[np.ndarray, np.ndarray]:
    """(float64 product of weights and dequantized activations, largest error a kernel may show), each [n][rows].

    Integer sums, their scaling by 2^-e and the sub-block scales are exact, so the error is that of the float32 sums.
    A scale per row costs two more: its gain and the total's.
    In a slice of 256 columns: one rounding per sub-block, one more per 32 columns for float minimums or one for all
    integer minimums; then one per slice for the total. Every partial sum is at most A = sum of |terms|, so the error is
    at most (roundings of a slice + slices) * 2^-24 * A (1 % added for the second order).
    Integer minimums meet sums rounded to 1/MIN_UNIT: at most d / (2 MIN_UNIT) * |floor| per sub-block.
    """
    x = acts.values
    k, sub = x.shape[1], SUB[w.type]
    size = w.gain * np.abs(x) @ (np.abs(w.scale * w.code) + np.abs(w.floor)).T
    in_slice = min(k, SLICE) // sub + (min(k, SLICE) // 32 if w.type in FLOAT_MINS else 1 if w.type in INT_MINS else 0)
    bound = 1.01 * U * (in_slice + -(-k // SLICE) + (2 if FORMATS[w.type].row else 0)) * size
    if w.type in INT_MINS:
        d = np.repeat(_f(acts.d), SLICE // sub, axis=1)[:, : k // sub]
        bound = bound + 0.5 / MIN_UNIT * d @ np.abs(w.floor[:, ::sub]).T
    return x @ w.exact.T, bound


def quantization_error(w: Weights, x: np.ndarray, acts: Acts) -> np.ndarray:
    """Largest difference [n][rows] that quantizing x to `acts` can make in the product.

    A code is the nearest integer to x / step, computed with relative errors of 2^-23 in x * 127 / amax and in d: a
    column is off by at most (1/2 + 127 * 2^-22) step. Slices below 1e-30 become zeros.
    """
    column = np.where(acts.step > 0, (0.5 + 127 * 2.0**-22) * acts.step, np.abs(_f(x)))
    return column @ np.abs(w.exact).T


def float_product(w: Weights, x: np.ndarray, lanes: int, by_rows: bool) -> tuple[np.ndarray, np.ndarray]:
    """The same for F32, F16, BF16 weights, which multiply x as it is.

    Panels: even and odd columns of a slice are summed apart (128 roundings each), then added to each other and to the
    total. Rows (gemv_rows): 2 * lanes partial sums over the whole row, added by halves; up to 2 * lanes - 1 columns of
    each slice are multiplied and added alone.
    """
    k = x.shape[1]
    slices, size = -(-k // SLICE), np.abs(_f(x)) @ np.abs(w.code).T
    panel = min(k, SLICE) / 2 + 1 + slices
    rows = k / (2 * lanes) + np.log2(2 * lanes) + 1 + 1 + 2 * lanes * slices
    return _f(x) @ w.code.T, 1.01 * U * (rows if by_rows else panel) * size
