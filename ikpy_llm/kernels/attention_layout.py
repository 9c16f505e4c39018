"""Sizes of the attention kernels' buffers and their fixed grids of positions. Imports no Numba.

K cache: f16 [n_head_kv][n_cells / W][k_dim][W], panels of W = lanes positions; V cache: f16
[n_head_kv][n_cells][v_dim]. Position p lies in cell p % n_cells; n_cells, a multiple of CHUNK, covers all that the rows
of one step see.
"""

from __future__ import annotations

BLOCK = 64  # positions between two updates of the running softmax
# positions with a softmax of their own; chunks are joined in order, so that they may be worked on by different threads
CHUNK = 256
SPLIT_TOKENS = 4  # steps of at most so many tokens give threads chunks of the sequence, longer ones rows
HEADER = 16  # floats before the v_dim sums of a partial result: maximum, sum of weights, unused


def partial_bytes(v_dim: int) -> int:
    """Bytes of the result of one row over one chunk."""
    return (HEADER + v_dim) * 4


def scratch_bytes(n_tokens_max: int, n_head: int, n_cells: int, v_dim: int) -> int:
    """Bytes of scratch of attend, for steps of up to n_tokens_max tokens."""
    n_spans = n_cells // CHUNK + 1  # so many positions may begin inside a chunk
    return min(n_tokens_max, SPLIT_TOKENS) * n_head * n_spans * partial_bytes(v_dim)


def n_counters(n_head: int) -> int:
    """Counters of attend (int64): one for each group of rows, at most the rows of SPLIT_TOKENS tokens."""
    return SPLIT_TOKENS * n_head


def kcache_bytes(n_head_kv: int, n_cells: int, k_dim: int) -> int:
    """Bytes of the K cache of a layer."""
    return n_head_kv * n_cells * k_dim * 2


def vcache_bytes(n_head_kv: int, n_cells: int, v_dim: int) -> int:
    """Bytes of the V cache of a layer."""
    return n_head_kv * n_cells * v_dim * 2
