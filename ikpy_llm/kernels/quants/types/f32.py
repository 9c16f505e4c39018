"""F32: plain 32-bit floats."""

from ..base import plain

F32 = plain("F32", "f32")
