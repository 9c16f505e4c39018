"""F16: IEEE half floats."""

from ..base import plain

F16 = plain("F16", "f16")
