"""The planner: where barriers are needed, and where in one arena every buffer lies.

Records between two barriers may run at the same time: they form an epoch. A record needs a barrier before it if it
touches what a record of its epoch writes, or writes what one reads. A buffer lives from the epoch that writes it first
to the one that uses it last; buffers whose epochs do not meet may share bytes.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from itertools import pairwise

from ikpy_llm.engine.graph.graph import Value
from ikpy_llm.engine.program.records import Record, Scratch

ALIGN = 64  # bytes: one cache line, one AVX-512 vector


@dataclass(frozen=True)
class Plan:
    """Records in order; epoch[i] of each; offset and bytes of each buffer; bytes of the arena."""

    records: list[Record]
    epochs: list[int]
    offsets: dict[Value | Scratch, int]
    sizes: dict[Value | Scratch, int]
    n_bytes: int

    @property
    def barriers(self) -> list[bool]:
        """Whether all threads meet after record i; where a program ends the runner lets them meet anyway."""
        return [a != b for a, b in pairwise(self.epochs)] + [False]


def epochs(records: list[Record], overlap: bool = True) -> list[int]:
    """Epoch of every record, from 0; without `overlap` each record has its own."""
    if not overlap:
        return list(range(len(records)))
    out, now, read, written = [], 0, set(), set()
    for r in records:
        reads, writes = set(r.reads), set(r.writes)
        if (reads | writes) & written or writes & read:
            now, read, written = now + 1, set(), set()
        read |= reads
        written |= writes
        out.append(now)
    return out


def buffers(records: list[Record]) -> dict[Value | Scratch, list[int]]:
    """Indices of the records that use each buffer."""
    uses: dict[Value | Scratch, list[int]] = {}
    for i, r in enumerate(records):
        for word in r.words:
            if isinstance(word, Value | Scratch):
                uses.setdefault(word, []).append(i)
    return uses


def plan(records: list[Record], size_of, keep=(), overlap: bool = True) -> Plan:
    """Place all buffers. `size_of(value)` gives bytes; values in `keep` (results) live to the end.

    In order of birth, each at the lowest offset that nothing alive covers; of those born together big ones first.
    """
    when = epochs(records, overlap)
    spans, sizes = {}, {}
    for key, uses in buffers(records).items():
        first, last = when[uses[0]], when[uses[-1]]
        spans[key] = (first, when[-1] if key in keep else last)
        size = size_of(key) if isinstance(key, Value) else key.bytes
        sizes[key] = -(-max(size, 1) // ALIGN) * ALIGN
    offsets: dict[Value | Scratch, int] = {}
    live: list[tuple[int, int, int]] = []  # (offset, end, last epoch), by offset
    n_bytes = 0
    for key in sorted(spans, key=lambda k: (spans[k][0], -sizes[k])):
        (first, last), size, offset = spans[key], sizes[key], 0
        live = [span for span in live if span[2] >= first]
        for low, high, _ in live:
            if low - offset >= size:
                break
            offset = high
        offsets[key] = offset
        insort(live, (offset, offset + size, last))
        n_bytes = max(n_bytes, offset + size)
    return Plan(records, when, offsets, sizes, n_bytes)
