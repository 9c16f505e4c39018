"""Classes of programs: a program is built for the largest step of its class."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A program class: most rows of a step, most rows of logits, and whether the head sees only the last row."""

    n_rows: int
    n_outputs: int
    last_row_only: bool
    hidden: bool = False  # the result is the output norm's, not logits
