"""NumPy oracles of the matrix kernels: the activation quantizer, products and their error bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reference_formats import FLOAT_MINS, FORMATS, INT_MINS, SUB, Weights

from ikpy_llm.kernels.derive.layout import PAIRS, scaled_as_integers
from ikpy_llm.kernels.simd import target

SLICE = 256  # columns of activations that share a unit of their sums
MIN_UNIT = 8  # sums that meet integer minimums are kept in units of 1/8
MAGIC = 1.5 * 2**23
U = 2.0**-24  # largest relative error of one float32 rounding


def _f(x):
    return x.astype(np.float64)


# ---------------------------------------------------------------- activations
@dataclass
class Acts:
    """x = codes * d. codes int64 [n][k], d float32 [n][k/32], unit float32 [n][slices]: the largest d of a slice."""

    codes: np.ndarray
    d: np.ndarray
    unit: np.ndarray

    @property
    def step(self):
        """Value of code 1, float64 [n][k]."""
        return np.repeat(_f(self.d), 32, axis=1)

    @property
    def values(self):
        return self.codes * self.step

    @property
    def offsets(self):
        """What takes MAGIC * d away, exact in float32."""
        out = -_f(self.d) * MAGIC
        assert (out == out.astype(np.float32)).all()
        return out.astype(np.float32)

    def sums(self, sub: int):
        """Sums of `sub` codes, int64 [n][k/sub]."""
        return self.codes.reshape(len(self.codes), -1, sub).sum(-1)

    def scaled_sums(self):
        """Sums of 32 codes times d, rounded to float32."""
        return self.sums(32).astype(np.float32) * self.d

    def fixed_sums(self, sub: int):
        """Sums times d in units of unit / MIN_UNIT, rounded half to even, every step in float32."""
        with np.errstate(divide="ignore"):
            per_unit = np.where(self.unit > 0, np.float32(MIN_UNIT) / self.unit, np.float32(0))
        fixed = self.d * np.repeat(per_unit, SLICE // 32, axis=1)[:, : self.d.shape[1]]
        return np.rint(self.sums(sub).astype(np.float32) * np.repeat(fixed, 32 // sub, axis=1)).astype(np.int16)

    def starts(self, zero: int, sub: int):
        """Where an integer accumulator starts: bits of MAGIC, minus zero times the sum of codes; or, for sub - PAIRS
        columns, the words of pairs of 16 bits, which are those sums of the first and of the last two columns of words.
        """
        if sub > PAIRS:
            pairs = in_words(self.codes).reshape(len(self.codes), -1, (sub - PAIRS) // 4, 2, 2).sum(axis=(2, 4))
            return np.ascontiguousarray(-zero * pairs).astype(np.int16).view(np.int32)[..., 0]
        return np.float32(MAGIC).view(np.int32) - zero * self.sums(sub)


def in_words(codes: np.ndarray) -> np.ndarray:
    """[n][k] in the order of layout.word_columns: where products are added in pairs of 16 bits, a word has columns i,
    i + 1, i + 16, i + 17 of its block."""
    if not target.current().pairs16:
        return codes
    halves = codes.reshape(len(codes), -1, 2, 8, 2)
    return halves.transpose(0, 1, 3, 2, 4).reshape(codes.shape)


def scale(amax) -> np.float32:
    """Value of code 1 for a block whose largest value is amax: amax / 127 in float32, rounded up to 22 bits."""
    if not amax > np.float32(1e-30):
        return np.float32(0)
    bits = (np.float32(amax) * np.float32(1 / 127)).view(np.uint32)
    return np.uint32((int(bits) + 3) // 4 * 4).view(np.float32)


def quantize(x: np.ndarray) -> Acts:
    """float32 [n][k], k a multiple of 32, every step rounded to float32."""
    f32 = np.float32
    n, k = x.shape
    codes, d, unit = np.zeros((n, k), np.int64), np.zeros((n, k // 32), f32), np.zeros((n, -(-k // SLICE)), f32)
    for row in range(n):
        for b in range(0, k, 32):
            block = x[row, b : b + 32]
            s = d[row, b // 32] = scale(np.abs(block).max())
            unit[row, b // SLICE] = max(unit[row, b // SLICE], s)
            if s > 0:
                codes[row, b : b + 32] = np.clip(np.rint(block * (f32(1) / s)), -127, 127)
    return Acts(codes, d, unit)


# ---------------------------------------------------------------- products
def product(w: Weights, acts: Acts) -> tuple[np.ndarray, np.ndarray]:
    """(float64 product of weights and dequantized activations, largest error a kernel may show), each [n][rows].

    Integer sums and sub-block scales are exact, so the error is that of the float32 operations. Every partial sum is at
    most A = sum of |terms|, and so is the sum of roundings of single terms. Roundings, in units of 2^-24 * A:
    In a slice of 256 columns: one for the terms (sum times d of the activations), one per sub-block for their sum (or,
    where integer scales are part of the integer sum, one for that as a float, one per 32 columns for their sum and one
    for d); one for the terms of float minimums and one per 32 columns for their sum, or two for all integer minimums.
    Then one per slice for the total. A scale per row costs two more: its gain and the total's. 1 % is added for the
    second order.
    Integer minimums meet sums rounded to 1/MIN_UNIT (in float32, whose error is below 1 % of that): at most
    unit / (2 MIN_UNIT) * |floor| per sub-block.
    """
    x = acts.values
    k, sub = x.shape[1], SUB[w.type]
    size = w.gain * np.abs(x) @ (np.abs(w.scale * w.code) + np.abs(w.floor)).T
    mins = min(k, SLICE) // 32 + 1 if w.type in FLOAT_MINS else 2 if w.type in INT_MINS else 0
    in_slice = (2 + min(k, SLICE) // 32 if scaled_as_integers(w.type) else 1 + min(k, SLICE) // sub) + mins
    bound = 1.01 * U * (in_slice + -(-k // SLICE) + (2 if FORMATS[w.type].row else 0)) * size
    if w.type in INT_MINS:
        unit = np.repeat(_f(acts.unit), SLICE // sub, axis=1)[:, : k // sub]
        bound = bound + 0.505 / MIN_UNIT * unit @ np.abs(w.floor[:, ::sub]).T
    return x @ w.exact.T, bound


def quantization_error(w: Weights, x: np.ndarray, acts: Acts) -> np.ndarray:
    """Largest difference [n][rows] that quantizing x to `acts` can make in the product.

    A code is the nearest integer to x * (1 / step), computed with two roundings: a column is off by at most
    (1/2 + 127 * 2^-23) step. Blocks up to 1e-30 become zeros.
    """
    column = np.where(acts.step > 0, (0.5 + 127 * 2.0**-23) * acts.step, np.abs(_f(x)))
    return column @ np.abs(w.exact).T


def float_product(w: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for F32, F16, BF16 weights, which multiply x as it is.

    Even and odd columns of a slice are summed apart (128 roundings each), then added to each other and to the total.
    """
    k = x.shape[1]
    slices, size = -(-k // SLICE), np.abs(_f(x)) @ np.abs(w.code).T
    return _f(x) @ w.code.T, 1.01 * U * (min(k, SLICE) / 2 + 1 + slices) * size
