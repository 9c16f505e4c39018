"""NextN blocks (multi-token prediction): layers behind the model's own that draft further tokens. They add nothing to
the logits, and are left unread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ikpy_llm.engine.graph.params import Params

_OF_BLOCK = re.compile(r"blk\.(\d+)\.(nextn\.)?")


def left_out(p: Params, tensors: Mapping[str, object]) -> tuple[dict[str, object], list[int]]:
    """The tensors without those of NextN blocks, and the numbers of these blocks; `p.n_layer` no longer counts them.

    A NextN block has tensors `blk.<i>.nextn.*`. Files whose converter dropped the tensors still count the blocks:
    then those of the last `nextn_predict_layers` that have no tensor.
    """
    blocks: dict[str, int] = {}
    drafts, full = set(), set()
    for name in tensors:
        if found := _OF_BLOCK.match(name):
            blocks[name] = int(found[1])
            (drafts if found[2] else full).add(blocks[name])
    n = p.n_layer
    drafts |= {i for i in range(n - min(p.n_nextn, n), n) if i not in full}
    while n - 1 in drafts:
        n -= 1
    drafts = {i for i in drafts if i >= n}
    if drafts and n:
        p.cut_layers(n)
        tensors = {name: t for name, t in tensors.items() if blocks.get(name) not in drafts}
    return dict(tensors), sorted(drafts)
