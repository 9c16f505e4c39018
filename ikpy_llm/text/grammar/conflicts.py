"""Terminals of a grammar for which the longest match is not the only one; their sets are ints, a bit for each."""

from __future__ import annotations

from collections.abc import Iterator

from ikpy_llm.text.grammar.terms import Terms


def conflicts(terms: Terms, trees: dict[str, tuple], effort: int) -> tuple[set[int], int]:
    """Terminals (nodes) that read too far, or in whose place another one is read; and how many pairs were compared.

    With more than `effort` pairs to compare some are not found.
    """
    follow, first = _followers(trees)
    nodes = list(follow)
    bit = {node: 1 << i for i, node in enumerate(nodes)}
    begins: dict[int, int] = {}  # class of characters -> terminals that begin with it
    for node in nodes:
        for c in bits(terms.first[node]):
            begins[c] = begins.get(c, 0) | bit[node]
    alike = {node: _union(begins[c] for c in bits(terms.first[node])) & ~bit[node] for node in nodes}
    masks = {node: _union(bit[other] for other in others) for node, others in follow.items()}
    sources = {_union(bit[other] for other in first), *masks.values()}
    together = {node: alike[node] & _union(source for source in sources if source & bit[node]) for node in nodes}
    texts = {terms.nodes[node][1]: node for node in nodes if terms.nodes[node][0] == "text"}
    all_texts = _union(bit[node] for node in texts.values())

    spent, before = 0, None
    while (
        before != together
    ):  # where two match the same text (two different texts do not), what follows either may come
        before, wider = dict(together), set()
        for node in nodes:
            same = together[node] & ~(all_texts if bit[node] & all_texts else 0)
            spent += same.bit_count()
            if same and spent <= effort:
                wider.add(masks[node] | _union(masks[nodes[i]] for i in bits(same)))
        for node in nodes:
            together[node] |= alike[node] & _union(source for source in wider if source & bit[node])

    after: dict[int, int] = {}  # terminals -> characters with which one of them begins
    for mask in masks.values():
        if mask not in after:
            after[mask] = _union(terms.first[nodes[i]] for i in bits(mask))
    found = {node for node in nodes if terms.ext[node] & after[masks[node]]}
    for text, node in texts.items():  # a text that begins a longer one
        for n in range(2, len(text)):
            short = texts.get(text[:n])
            if (
                short is not None
                and together[short] & bit[node]
                and terms.first[terms.add("text", text[n])] & after[masks[short]]
            ):
                found |= {short, node}
    for node in nodes:
        others = together[node] & ~(all_texts if bit[node] & all_texts else 0)
        for i in bits(others):
            spent += 1
            if spent > effort:
                break
            if terms.tail[nodes[i]] & after[masks[node]]:
                found |= {node, nodes[i]}
    return {node for node in found if terms.nodes[node][0] != "chars"}, spent


def _followers(trees: dict[str, tuple]) -> tuple[dict[int, frozenset], frozenset]:
    """For each terminal those that may follow it, and those with which a text may begin."""
    nullable, first = dict.fromkeys(trees, False), {name: frozenset() for name in trees}
    after = {name: frozenset() for name in trees}
    follow: dict[int, frozenset] = {}

    def empty(tree) -> bool:
        kind, *args = tree
        if kind == "rule":
            return nullable[args[0]]
        if kind == "rep":
            return args[1] == 0 or empty(args[0])
        return kind in ("seq", "alt") and {"seq": all, "alt": any}[kind]([empty(item) for item in args[0]])

    def begin(tree) -> frozenset:
        kind, *args = tree
        if kind == "term":
            return frozenset(args)
        if kind == "rule":
            return first[args[0]]
        if kind == "rep":
            return begin(args[0])
        found = set()
        for item in args[0] if kind in ("seq", "alt") else ():
            found |= begin(item)
            if kind == "seq" and not empty(item):
                break
        return frozenset(found)

    def walk(tree, then: frozenset) -> None:
        kind, *args = tree
        if kind == "term":
            follow[args[0]] = follow.get(args[0], frozenset()) | then
        elif kind == "rule":
            after[args[0]] |= then
        elif kind == "rep":
            walk(args[0], then | begin(args[0]) if args[2] is None or args[2] > 1 else then)
        elif kind == "alt":
            for item in args[0]:
                walk(item, then)
        elif kind == "seq":
            for item in reversed(args[0]):
                walk(item, then)
                then = begin(item) | (then if empty(item) else frozenset())

    _settle(nullable, lambda: nullable.update({name: empty(tree) for name, tree in trees.items()}))
    _settle(first, lambda: first.update({name: begin(tree) for name, tree in trees.items()}))
    _settle(after, lambda: [walk(tree, after[name]) for name, tree in trees.items()])
    return follow, first["root"]


def _settle(state: dict, step) -> None:
    """Repeat a step until it changes nothing."""
    before = None
    while before != state:
        before = dict(state)
        step()


def bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _union(masks) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found
