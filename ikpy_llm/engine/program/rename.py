"""A program over other matrices: prompts with --pp-requant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ikpy_llm.engine.graph.graph import Op


def renamed(ops: list[Op], names: Mapping[str, str]) -> list[Op]:
    """The ops with matrices of other names."""

    def one(op: Op) -> Op:
        w = op.weights.get("w") if op.name.startswith("matmul") else None
        return dataclasses.replace(op, weights={**op.weights, "w": names[w]}) if w in names else op

    return [one(op) for op in ops]
