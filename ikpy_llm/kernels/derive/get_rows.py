"""Embedding look-up straight from the file's rows."""

from __future__ import annotations

from ..quants import get
from ..simd.ops import f32, load_i32, load_i64
from .dequant import row_decoder


def get_rows(type: str):
    """words: w (file rows), row_stride bytes, ids int32*, y f32 [n][n_embd], n_embd, scale f32, state. y[i] =
    scale * row ids[i]."""
    decode = row_decoder(get(type))

    def get_rows(w, row_stride, ids, y, n_embd, scale: f32, state, ith, nth):
        for i in range(ith, load_i64(state), nth):
            decode(w + load_i32(ids + 4 * i) * row_stride, y + 4 * i * n_embd, n_embd, scale)

    return get_rows
