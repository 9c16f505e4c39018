"""Sizes of the attention kernels' buffers and their fixed grids of positions. Imports no Numba.

K cache: [n_head_kv][n_cells / W][k_dim][W], panels of W = lanes positions; V cache: [n_head_kv][n_cells][v_dim]; both
in panels of W positions where they are quantized (kv/types.py). k_dim and v_dim are there rounded up to whole vectors,
or tiles (KVType.columns); what comes after the elements of a head is zero. Position p lies in cell p % n_cells;
n_cells, a multiple of CHUNK, covers all that the rows of one step see.
"""

from __future__ import annotations

from ..kv.types import COLUMNS, kv_type

BLOCK = 64  # positions between two updates of the running softmax
# positions with a softmax of their own; chunks are joined in order, so that they may be worked on by different threads
CHUNK = 256
ROWS = 6  # rows (tokens x heads of a KV head) of a full tile; 2 or 4 vectors of sums for each fit the registers
FEW = 4  # rows of the narrow tile, unless a kernel is asked for another number
SPLIT_TOKENS = 4  # steps of at most so many tokens give threads chunks of the sequence, longer ones rows
MAX_DIM = 4096  # elements of a head: the kernels keep up to 350 bytes of the stack for each, of often 2 MB for a thread
CACHE_LINE = 64
DEALT, LEFT, DONE = 0, 16, 32  # counters of attend
HEADER = 16  # floats before the sums of a partial result: maximum, sum of weights, unused


def partial_bytes(v_dim: int) -> int:
    """Bytes of the result of one row over one chunk: with sums of as many columns as any type of values keeps."""
    return (HEADER + -(-v_dim // COLUMNS) * COLUMNS) * 4


def scratch_bytes(n_tokens_max: int, n_head: int, n_cells: int, v_dim: int) -> int:
    """Bytes of scratch of attend, for steps of up to n_tokens_max tokens."""
    n_spans = n_cells // CHUNK + 1  # so many positions may begin inside a chunk
    return min(n_tokens_max, SPLIT_TOKENS) * n_head * n_spans * partial_bytes(v_dim)


def plain_scratch_bytes(n_threads: int, n_cells: int) -> int:
    """Bytes of scratch of attention.plain.attend: scores of a row for each thread."""
    return n_threads * (n_cells + 2 * BLOCK) * 4


def n_counters(n_head: int) -> int:
    """Counters of attend (int64): what is dealt and threads that have left, on cache lines of their own, then one for
    each group of rows, at most the rows of SPLIT_TOKENS tokens.
    """
    return DONE + SPLIT_TOKENS * n_head


def cache_bytes(type_name: str, n_head_kv: int, n_cells: int, dim: int, rotated: bool = False) -> int:
    """Bytes of a layer's keys, or values, in heads of `dim` elements (rotated: through a Hadamard rotation)."""
    return n_head_kv * n_cells * kv_type(type_name).row_bytes(dim, rotated)


def narrow_tile(group: int) -> dict[str, int]:
    """The parameter `few` of attend for models with so many heads for a KV head: those of one token, where they are
    fewer than a full tile's; none where that is what it has anyway."""
    return {"few": group} if group < ROWS and group != FEW else {}
