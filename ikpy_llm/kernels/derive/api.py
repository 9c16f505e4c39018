"""NumPy in, NumPy out: dequantize, multiply and list quantization types, through the same kernels the engine runs."""

from __future__ import annotations

import ctypes

import numpy as np

from ikpy_llm.arguments import checks_arguments, items, refuse, whole
from ikpy_llm.errors import ArgumentError, shown

from ..compiler import jit
from ..quants import file_types, get, table
from ..quants.interleaved import weave
from ..run.memory import Memory
from . import bench, layout


def _checked(data, type_name: str, shape: tuple[int, int]) -> tuple[np.ndarray, str, int, int]:
    try:
        name = table.by_name(type_name).name
        base = weave.base_of(name)
        get(base)
    except KeyError:
        raise ArgumentError(f"tensor type {shown(type_name)}: there are {', '.join(file_types())}") from None
    sizes = items("shape", shape, "a pair (rows, columns)")
    if len(sizes) != 2:
        refuse("shape", shape, "a pair (rows, columns)")
    rows, k = whole("rows of the shape", sizes[0]), whole("columns of the shape", sizes[1])
    try:
        layout.check_matrix(base, rows, k)
        if name != base:
            weave.check(name, rows, k)
        want = table.tensor_bytes(name, (rows, k))
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    raw = _bytes(data)
    if raw.size != want:
        raise ArgumentError(f"{name}: {rows} x {k} takes {want} bytes, data has {raw.size}")
    return (raw if name == base else unweave(raw, name, rows, k)), base, rows, k


def _bytes(data) -> np.ndarray:
    """uint8 (n,): the bytes of an array or a buffer in the order of its elements."""
    try:
        found = np.asarray(data if hasattr(data, "__array__") else memoryview(data))
    except Exception:  # no buffer, a closed one, or an object whose own conversion fails
        refuse("data", data, "bytes or an array")
    if found.dtype.hasobject:
        refuse("data", data, "bytes or an array of numbers")
    return np.ascontiguousarray(found).view(np.uint8).reshape(-1)


def _rows(x, k: int) -> np.ndarray:
    """float32 (n, k), contiguous: the numbers of an array, or of lists of lists."""
    try:
        found = np.asarray(x)
        kind = "" if type(x).__module__.startswith("numpy.ma") else found.dtype.kind  # a mask would be lost
    except Exception:  # rows of different lengths, or an object whose own conversion fails
        kind = ""
    if kind not in tuple("biuf"):  # complex numbers would lose a part, texts are no numbers
        refuse("x", x, f"an array (n, {k}) of real numbers")
    if found.ndim != 2 or found.shape[1] != k:
        raise ArgumentError(f"x has shape {found.shape}, the matrix takes (n, {k})")
    with np.errstate(over="ignore"):  # too large for float32: refused below
        found = np.ascontiguousarray(found, np.float32)
    if not np.isfinite(found).all():
        raise ArgumentError("x holds values that are not finite")
    return found


def unweave(raw: np.ndarray, name: str, rows: int, k: int, out: np.ndarray | None = None, threads: int = 1):
    """The bytes of a tensor of an interleaved type (or I2_S) -> uint8 (n_bytes,): rows of its base type, in `out` if
    given. ValueError as weave.check."""
    weave.check(name, rows, k)
    size = layout.file_bytes(weave.base_of(name), k)
    out = np.empty(rows * size, np.uint8) if out is None else out
    woven = weave.types().get(name)
    if woven is None:
        out[:] = weave.from_i2_s(raw, rows, k).reshape(-1)
        return out
    moves, n_blocks = weave.move_table(name, size), (size - woven.meta) // woven.n_bytes
    sizes = rows // woven.rows, n_blocks, woven.rows, woven.n_bytes, woven.meta
    spec = jit.Kernel("derive.unweave")
    fn, args = jit.function(jit.load([spec])[spec]), jit.pack_words([raw, out, *sizes, moves, moves.size])
    from concurrent.futures import ThreadPoolExecutor  # 3 ms that only interleaved types need

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda ith: fn(ctypes.addressof(args), ith, threads), range(threads)))
    return out


@checks_arguments
def dequantize(data, type_name: str, shape: tuple[int, int]) -> np.ndarray:
    """Values of a quantized matrix.

    data: bytes or array holding `rows` rows in the layout of GGUF files; shape: (rows, columns). Returns float32
    (rows, columns).
    ArgumentError (an IkpyError and a ValueError) for an unknown type, a column count that is no multiple of the type's
    block, or a wrong number of bytes.
    """
    raw, name, rows, k = _checked(data, type_name, shape)
    out = np.empty((rows, k), np.float32)
    jit.call(jit.Kernel("derive.dequant", type=name), raw, layout.file_bytes(name, k), out, rows, k)
    return out


@checks_arguments
def matmul(data, type_name: str, shape: tuple[int, int], x) -> np.ndarray:
    """x @ W.T with W quantized: float32 (n, columns) -> float32 (n, rows).

    data, type_name, shape: as for dequantize. x is quantized to 8 bits (one scale per 32 columns), except for F32,
    F16 and BF16.
    ArgumentError as dequantize, and for an x of another shape, of no real numbers, or with values that are not finite.
    """
    raw, name, rows, k = _checked(data, type_name, shape)
    x = _rows(x, k)
    n = len(x)
    y = np.zeros((n, rows), np.float32)
    if n == 0:
        return y
    panels = Memory(layout.weight_bytes(name, rows, k)).bytes
    jit.call(jit.Kernel("derive.pack", type=name), raw, layout.file_bytes(name, k), rows, k, panels, 0)
    few = n <= 8
    acts, buffer = bench.acts(x, n if few else layout.gemm_tile(), [name])
    flavour = layout.flavour(name)
    start = acts.start(flavour) if flavour else 0
    if few:
        words = panels, buffer, acts.stride, start, y, rows, rows, k, 0, 0, 0
        jit.call(jit.Kernel("derive.gemv", type=name, n=n), *words)
    else:
        scratch = Memory(layout.gemm_scratch_bytes(n)).bytes
        state = np.array([n, 0, 0, 0], np.int64)
        jit.call(
            jit.Kernel("derive.gemm", type=name),
            panels,
            0,
            buffer,
            acts.stride,
            start,
            y,
            rows,
            rows,
            k,
            0,
            0,
            scratch,
            scratch.size,
            state,
            0,
        )
    return y


@checks_arguments
def quant_types() -> list[dict]:
    """One row per type a tensor may have: name, id (ggml's number), block (columns), bytes (per block), bpw (bits
    per weight in the file), panel_bpw (woven); both without the scale of a row, where the type has one."""
    rows = _Table()
    for name in file_types():
        info, base = table.by_name(name), weave.base_of(name)
        by_row = 4 if get(base).row else 0  # bytes
        panel = (layout.panel_bytes(base, 2048) / layout.width() - by_row) * 8 / 2048
        rows.append(
            {
                "name": info.name,
                "id": info.id,
                "block": info.block,
                "bytes": info.bytes,
                "bpw": 2.0 if name == "I2_S" else info.bytes * 8 / info.block,
                "panel_bpw": panel,
            }
        )
    return rows


class _Table(list):
    """Rows as a list of dict; its repr is a table."""

    def __repr__(self) -> str:
        lines = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in self]
        lines = [list(self[0]), *lines] if self else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
