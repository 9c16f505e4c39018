"""Codebooks of the grid types, as the gguf package has them, in the form kernels look up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Bytes that a declaration looks up: `TABLE()` is their address. Built when a kernel is compiled."""

    build: Callable[[], bytes]


def _grid(name: str, values: tuple[int, ...]) -> Table:
    """A grid of the gguf package with every value replaced by its number in `values`."""

    def build() -> bytes:
        import gguf.quants
        import numpy as np

        cls = getattr(gguf.quants, name)
        cls.init_grid()
        flat = np.asarray(cls.grid).astype(int).ravel()
        return np.searchsorted(values, flat).astype(np.uint8).tobytes()

    return Table(build)


IQ2_VALUES, IQ3_XXS_VALUES, IQ3_S_VALUES = (8, 25, 43), (4, 12, 20, 28, 36, 44, 52, 62), (1, 3, 5, 7, 9, 11, 13, 15)
IQ2_XXS_GRID, IQ2_XS_GRID, IQ2_S_GRID = (_grid(f"IQ2_{size}", IQ2_VALUES) for size in ("XXS", "XS", "S"))
IQ3_XXS_GRID, IQ3_S_GRID = _grid("IQ3_XXS", IQ3_XXS_VALUES), _grid("IQ3_S", IQ3_S_VALUES)
IQ1_GRID = _grid("IQ1_S", (-1, 0, 1))
SIGNS = Table(lambda: bytes(i | (i.bit_count() & 1) << 7 for i in range(128)))  # an even number of minus signs


def signed_levels(values: tuple[int, ...]) -> tuple[int, ...]:
    """Level + zero for codes `number of the value | minus << bits`, with the largest value as zero."""
    top, room = max(values), 1 << (len(values) - 1).bit_length()
    filled = [*values, *[0] * (room - len(values))]
    return tuple(top + v for v in filled) + tuple(top - v for v in filled)


IQ2_KL_EVEN, IQ2_KL_ODD = (  # numbers of the levels of even and odd columns
    Table(lambda digits=digits: bytes(map(int, digits)))
    for digits in ("00111122222333344444555556666677", "25035712456045723456123450246725")
)
IQ4_SIGNED = Table(
    lambda: bytes(v & 255 for v in (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
)
IQ1_BN_SOURCES = Table(lambda: bytes(12 if t == 15 else 3 * u + t // 5 for u in range(4) for t in range(16)))
IQ1_BN_POWERS = Table(lambda: bytes((81, 27, 9, 3, 1)[u if t == 15 else t % 5] for u in range(4) for t in range(16)))


def _powers() -> bytes:
    """0xCBAC1FED^1 to ^8, then twice ^1 to ^4, as u32."""
    powers = [pow(0xCBAC1FED, k + 1, 1 << 32) for k in range(8)]
    return b"".join(p.to_bytes(4, "little") for p in powers + powers[:4] * 2)


TRELLIS_POWERS = Table(_powers)
