"""From a model's op list to records, by the table of ops."""

from __future__ import annotations

from ikpy_llm.engine.graph.graph import Op
from ikpy_llm.engine.program import ops as _ops  # noqa: F401  (they register themselves)
from ikpy_llm.engine.program.lowering import OPS, Lowering, acts_layouts, routes_layout
from ikpy_llm.engine.program.records import Record


def lower(ops: list[Op], low: Lowering) -> list[Record]:
    """Records of all ops, in order."""
    low.routes = routes_layout(ops, low)
    low.acts.update(acts_layouts(ops, low))
    made = [OPS[o.name](o, low) for o in ops]
    return [r for one in made for r in (one if isinstance(one, list) else [one])]
