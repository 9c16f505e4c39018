"""The types of the KV cache in NumPy: what values become in it (the reference's run-time quantizers), and what its
bytes mean.
"""

import numpy as np

from ikpy_llm.kernels import simd
from ikpy_llm.kernels.kv.store import is_signed
from ikpy_llm.kernels.kv.types import kv_type
from ikpy_llm.kernels.quants.shared import IQ4_LEVELS

F = np.float32
LEVELS = np.array(IQ4_LEVELS, F) - 128


def _f16(x):
    return x.astype(np.float16).astype(F)


def _largest(x):
    return np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)


def _over(a, b):
    return np.divide(a, b, out=np.zeros_like(b), where=b != 0)


def _fit(x, q):
    return _over((x**3 * q).sum(1, keepdims=True, dtype=F), (x * x * q * q).sum(1, keepdims=True, dtype=F))


def _fitted(x, zero):
    q = np.minimum(np.rint(x * _over(F(-zero), _largest(x))), F(zero - 1))
    return _f16(_fit(x, q)) * q


def _q5_0(x):
    d = _largest(x) / F(-16)
    return _f16(d) * (np.minimum(31, np.trunc(x * _over(F(1), d) + F(16.5))) - 16)


def _ranged(x, top):
    low = x.min(1, keepdims=True)
    d = (x.max(1, keepdims=True) - low) / F(top)
    return _f16(d) * np.minimum(top, np.trunc((x - low) * _over(F(1), d) + F(0.5))) + _f16(low)


def _iq4_nl(x):
    return np.array([_iq4_nl_block(row) for row in x])


def _iq4_nl_block(x):
    most = x[np.abs(x).argmax()]
    if most == 0:
        return np.zeros_like(x)
    i = np.abs(x[:, None] / (most / F(-127)) - LEVELS).argmin(1)
    w = x * x
    along, size = (w * x * LEVELS[i]).sum(dtype=F), (w * LEVELS[i] ** 2).sum(dtype=F)
    while True:
        d = along / size
        pull = d * w * (x - d * LEVELS[i])
        j = np.clip(i + np.sign(pull).astype(int), 0, 15)
        ease = np.where(j != i, pull / np.where(j != i, LEVELS[j] - LEVELS[i], 1), 0)
        k = ease.argmax()
        new = along + w[k] * x[k] * (LEVELS[j[k]] - LEVELS[i[k]]), size + w[k] * (LEVELS[j[k]] ** 2 - LEVELS[i[k]] ** 2)
        if ease[k] <= 0 or not new[0] ** 2 > d * along * new[1]:
            return _f16(d) * LEVELS[i]
        along, size = new
        i[k] = j[k]


def _symmetric(x):
    most = np.abs(x).max(1, keepdims=True)
    return np.rint(x * _over(F(127), most)), most / F(127)


def quantized(x, name):
    """x (..., dim) float32 as the cache gives it back."""
    x = np.asarray(x, F)
    if name == "bf16":
        n = x.view(np.uint32)
        return ((n + 0x7FFF + (n >> 16 & 1)) & 0xFFFF0000).view(F)
    if name in ("f32", "f16"):
        return x if name == "f32" else np.clip(x, -65504, 65504).astype(np.float16).astype(F)
    blocks = np.clip(x, -65504, 65504).reshape(-1, x.shape[-1] if name == "q8_KV" else 32)
    if name.startswith("q8"):
        q, d = _symmetric(blocks)
        out = q * (d if name == "q8_KV" else _f16(d))
    else:
        how = {"q6_0": (_fitted, 32), "q4_0": (_fitted, 8), "q5_1": (_ranged, 31), "q4_1": (_ranged, 15)}
        fn, *args = how.get(name) or ({"q5_0": _q5_0, "iq4_nl": _iq4_nl}[name],)
        out = fn(blocks, *args)
    return out.astype(F).reshape(x.shape)


def rotated(x):
    """x (..., dim) through the normed Hadamard matrix of the largest power of two in dim."""
    n = x.shape[-1] & -x.shape[-1]
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return (x.reshape(*x.shape[:-1], -1, n) @ (h / np.sqrt(n))).reshape(x.shape)


def cells(data, name, n_head, n_cells, dim, keys):
    """Bytes of a layer's keys or values as float32 (head, cell, dim)."""
    kv, w = kv_type(name), simd.LANES
    if kv.is_plain:
        x = data.view({"f32": F, "f16": np.float16, "bf16": np.uint16}[name])
        x = (x.astype(np.uint32) << 16).view(F) if name == "bf16" else x.astype(F)
        panels = x.reshape(n_head, n_cells // w, dim, w).swapaxes(2, 3)
        return (panels if keys else x).reshape(n_head, n_cells, dim)
    tiles = data.reshape(n_head * n_cells // w, -1)[:, : dim // 32 * w * kv.tile_row]
    tiles = tiles.reshape(len(tiles), dim // 32, -1)
    codes, bit, at = 0, 0, 0
    for width in kv.planes:
        plane = tiles[..., at : at + width * 4 * w].reshape(*tiles.shape[:2], width, 4 * w)
        each = [plane[..., v % width, :] >> width * (v // width) & (1 << width) - 1 for v in range(8)]
        codes, bit, at = codes | np.stack(each, 2).astype(int) << bit, bit + width, at + width * 4 * w
    if keys:  # [vector][position][4 columns]
        codes = codes.reshape(*tiles.shape[:2], 8, w, 4).transpose(0, 3, 1, 2, 4)
    else:  # [part][quad][column of the part][4 positions]
        codes = codes.reshape(*tiles.shape[:2], 32 // w, w // 4, w, 4).transpose(0, 3, 5, 1, 2, 4)
    codes = codes.reshape(n_head, n_cells, dim // 32, 32)
    codes = codes ^ 128 if is_signed(kv, keys) else codes
    codes = (np.array(kv.levels)[codes] if kv.levels else codes) - kv.zero
    d, m = scales(data, name, n_head, n_cells, dim)
    return (codes.astype(F) * d[..., None] + m[..., None]).reshape(n_head, n_cells, dim)


def scales(data, name, n_head, n_cells, dim):
    """Scales and minimums of a quantized type: float32 (head, cell, dim / 32) each."""
    kv, w, groups = kv_type(name), simd.LANES, dim // 32
    panels = data.reshape(n_head * n_cells // w, -1)
    if kv.row_scale:
        d = np.repeat(np.ascontiguousarray(panels[:, -4 * w :]).view(F)[:, None], groups, 1)[:, :, None]
    else:
        tiles = panels.reshape(len(panels), groups, -1)
        d = np.ascontiguousarray(tiles[..., kv.bits * 4 * w :]).view(np.float16).astype(F)
        d = d.reshape(len(panels), groups, -1, w)
    d = d.transpose(2, 0, 3, 1).reshape(-1, n_head, n_cells, groups)
    return d[0], d[1] if kv.mins else np.zeros_like(d[0])
