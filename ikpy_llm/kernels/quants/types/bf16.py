"""BF16: the upper half of a 32-bit float."""

from ..base import plain

BF16 = plain("BF16", "bf16")
