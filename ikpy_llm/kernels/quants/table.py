"""Every tensor type of GGUF files: its number and the sizes that follow from it. Imports nothing heavy.

Row size in bytes = row_meta + block_bytes * columns / block; the row meta stands before the first block.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """Sizes of one tensor type, in the file's own numbering and names."""

    name: str
    id: int
    block: int  # columns per block
    bytes: int  # bytes per block and row
    row_meta: int  # bytes before the first block of a row
    interleave: int  # rows woven together; 1 = rows stand alone


# name, id, block, bytes, row_meta, interleave
_ROWS = (
    # Plain numbers.
    ("F32", 0, 1, 4, 0, 1),
    ("F16", 1, 1, 2, 0, 1),
    ("BF16", 30, 1, 2, 0, 1),
    # Plain numbers of the tensors that are no weights.
    ("I8", 24, 1, 1, 0, 1),
    ("I16", 25, 1, 2, 0, 1),
    ("I32", 26, 1, 4, 0, 1),
    ("I64", 27, 1, 8, 0, 1),
    ("F64", 28, 1, 8, 0, 1),
    # Blocks of 32 columns.
    ("Q4_0", 2, 32, 18, 0, 1),
    ("Q4_1", 3, 32, 20, 0, 1),
    ("Q5_0", 6, 32, 22, 0, 1),
    ("Q5_1", 7, 32, 24, 0, 1),
    ("Q6_0", 133, 32, 26, 0, 1),
    ("Q8_0", 8, 32, 34, 0, 1),
    ("IQ4_NL", 20, 32, 18, 0, 1),
    ("MXFP4", 39, 32, 17, 0, 1),
    # Super-blocks of 256 columns.
    ("Q2_K", 10, 256, 84, 0, 1),
    ("Q3_K", 11, 256, 110, 0, 1),
    ("Q4_K", 12, 256, 144, 0, 1),
    ("Q5_K", 13, 256, 176, 0, 1),
    ("Q6_K", 14, 256, 210, 0, 1),
    # Codebooks.
    ("IQ2_XXS", 16, 256, 66, 0, 1),
    ("IQ2_XS", 17, 256, 74, 0, 1),
    ("IQ2_S", 22, 256, 82, 0, 1),
    ("IQ3_XXS", 18, 256, 98, 0, 1),
    ("IQ3_S", 21, 256, 110, 0, 1),
    ("IQ1_S", 19, 256, 50, 0, 1),
    ("IQ1_M", 29, 256, 56, 0, 1),
    ("IQ4_XS", 23, 256, 136, 0, 1),
    # ik_llama.cpp's non-linear tables.
    ("IQ2_K", 137, 256, 76, 0, 1),
    ("IQ3_K", 138, 256, 110, 0, 1),
    ("IQ4_K", 139, 256, 144, 0, 1),
    ("IQ5_K", 140, 256, 176, 0, 1),
    ("IQ6_K", 141, 256, 212, 0, 1),
    ("IQ2_KS", 145, 256, 70, 2, 1),
    ("IQ2_KL", 157, 256, 86, 2, 1),
    ("IQ3_KS", 156, 256, 102, 2, 1),
    ("IQ4_KS", 144, 256, 136, 4, 1),
    ("IQ4_KSS", 146, 256, 128, 4, 1),
    ("IQ5_KS", 152, 256, 168, 4, 1),
    # ik_llama.cpp's trellis codes.
    ("IQ1_KT", 158, 256, 56, 4, 1),
    ("IQ2_KT", 153, 256, 68, 4, 1),
    ("IQ3_KT", 154, 256, 100, 4, 1),
    ("IQ4_KT", 155, 256, 128, 4, 1),
    # Ternary and binary. I2_S has one scale per tensor after the codes: see tensor_bytes.
    ("IQ1_BN", 134, 64, 13, 2, 1),
    ("IQ2_BN", 135, 64, 16, 4, 1),
    ("Q1_0_G128", 41, 128, 18, 0, 1),
    ("I2_S", 36, 1, 1, 0, 1),
    # Also a KV-cache type.
    ("Q8_KV", 151, 32, 32, 8, 1),
    # R consecutive rows woven into one memory area of R * row_bytes.
    ("Q4_0_R8", 202, 32, 18, 0, 8),
    ("Q5_0_R4", 206, 32, 22, 0, 4),
    ("Q8_0_R8", 208, 32, 34, 0, 8),
    ("Q6_0_R4", 233, 32, 26, 0, 4),
    ("IQ4_NL_R4", 220, 32, 18, 0, 4),
    ("MXFP4_R8", 353, 32, 17, 0, 8),
    ("Q2_K_R4", 210, 256, 84, 0, 4),
    ("Q3_K_R4", 211, 256, 110, 0, 4),
    ("Q4_K_R4", 212, 256, 144, 0, 4),
    ("Q5_K_R4", 213, 256, 176, 0, 4),
    ("Q6_K_R4", 214, 256, 210, 0, 4),
    ("IQ2_XXS_R4", 216, 256, 66, 0, 4),
    ("IQ2_XS_R4", 217, 256, 74, 0, 4),
    ("IQ3_XXS_R4", 218, 256, 98, 0, 4),
    ("IQ1_S_R4", 219, 32, 6, 2, 4),
    ("IQ3_S_R4", 221, 256, 110, 0, 4),
    ("IQ2_S_R4", 222, 256, 82, 0, 4),
    ("IQ4_XS_R8", 223, 256, 136, 0, 8),
    ("IQ1_M_R4", 229, 32, 7, 2, 4),
    ("BF16_R16", 230, 1, 2, 0, 16),
    ("IQ2_BN_R4", 335, 64, 16, 4, 4),
    ("IQ2_K_R4", 337, 256, 76, 0, 4),
    ("IQ3_K_R4", 338, 256, 110, 0, 4),
    ("IQ4_K_R4", 339, 256, 144, 0, 4),
    ("IQ5_K_R4", 340, 256, 176, 0, 4),
    ("IQ4_KS_R4", 344, 256, 136, 4, 4),
    ("IQ5_KS_R4", 352, 256, 168, 4, 4),
    ("Q8_K_R16", 397, 256, 258, 0, 16),
    ("Q8_KV_R8", 398, 32, 32, 4, 8),
    ("Q8_K_R8", 399, 256, 258, 0, 8),
    # Activations; sizes as in ik_llama.cpp. Never stored in model files.
    ("Q8_1", 9, 32, 36, 0, 1),
    ("Q8_K", 15, 256, 296, 0, 1),
    ("Q8_0_X4", 97, 32, 34, 0, 1),
    ("Q8_1_X4", 98, 32, 36, 0, 1),
    ("Q8_2_X4", 99, 32, 36, 0, 1),
    ("Q8_K64", 136, 64, 68, 0, 1),
    ("Q8_K16", 147, 64, 64, 20, 1),
    ("Q8_K32", 148, 256, 296, 0, 1),
    ("Q8_KR8", 149, 256, 296, 0, 1),
    ("Q8_K128", 150, 128, 140, 0, 1),
    # Named by old files; no decoder is left anywhere.
    ("Q4_0_4_4", 31, 32, 18, 0, 1),
    ("Q4_0_4_8", 32, 32, 18, 0, 1),
    ("Q4_0_8_8", 33, 32, 18, 0, 1),
    # llama.cpp only.
    ("TQ1_0", 34, 256, 54, 0, 1),
    ("TQ2_0", 35, 256, 66, 0, 1),
    ("NVFP4", 40, 64, 36, 0, 1),
)

# Rows of interleaved types that have no type of their own in files: what unweaving makes of X_R4, X_R8, X_R16.
_TAKEN_APART = (
    ("IQ1_S_R1", -1, 32, 6, 2, 1),
    ("IQ1_M_R1", -1, 32, 7, 2, 1),
    ("Q8_K_R1", -1, 256, 258, 0, 1),
    ("Q8_KV_R1", -1, 32, 32, 4, 1),
)

BY_ID = {row[1]: TypeInfo(*row) for row in _ROWS}
BY_NAME = {info.name: info for info in BY_ID.values()} | {row[0]: TypeInfo(*row) for row in _TAKEN_APART}

# llama.cpp's names where they differ from ik_llama.cpp's
ALIASES = {"Q1_0": "Q1_0_G128"}


def by_name(name: str) -> TypeInfo:
    """The type called `name` (as in ggml, any case). KeyError if there is none."""
    upper = name.upper()
    return BY_NAME[ALIASES.get(upper, upper)]


def by_id(type_id: int) -> TypeInfo:
    """The type with ggml's number `type_id`. KeyError if there is none."""
    return BY_ID[type_id]


def row_bytes(name: str, n: int) -> int:
    """Bytes of one row of `n` columns; `n` must be a positive multiple of the block (ValueError)."""
    info = by_name(name)
    if n <= 0 or n % info.block:
        raise ValueError(f"{info.name} rows are multiples of {info.block} columns, not {n}")
    return info.row_meta + n // info.block * info.bytes


def tensor_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `shape` (..., rows, columns); ValueError where the type does not allow the shape."""
    info = by_name(name)
    n_rows = 1
    for n in shape[:-1]:
        n_rows *= n
    if (
        info.name == "I2_S"
    ):  # 2 bits per weight in groups of 128 over the flattened tensor, then 32 bytes with one scale
        if n_rows * shape[-1] % 128:
            raise ValueError(f"I2_S tensors are multiples of 128 weights, not {n_rows * shape[-1]}")
        return n_rows * shape[-1] // 4 + 32
    rows = shape[-2] if len(shape) > 1 else 1
    if rows % info.interleave:  # groups of rows never cross from one expert to the next
        raise ValueError(f"{info.name} needs a multiple of {info.interleave} rows, not {rows}")
    return n_rows * row_bytes(info.name, shape[-1])
