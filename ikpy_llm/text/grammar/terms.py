"""Expressions of a grammar as numbered nodes, and which characters begin, fill, follow and extend each of them."""

from __future__ import annotations

from bisect import bisect_left

from ikpy_llm.errors import IkpyError
from ikpy_llm.text.grammar import gbnf

EMPTY = 0  # the node that matches the empty text
MAX_DEPTH = 600  # nodes within each other, through rules too


class Terms:
    """Nodes: ("text", str), ("chars", ranges), ("seq", nodes), ("alt", nodes), ("rep", node, low, high), ("rule", name)
    and ("token", text, other); equal ones have one number.

    Per node: `regular`: a regular expression can match it; `nullable`: the empty text is in it. Sets of characters are
    ints, a bit per class of characters that the grammar does not tell apart: `first` of its texts; `inner`: anywhere in
    them; `tail`: after the first; `ext`: those that make a text of it longer, `ext` and `tail` at least these.
    """

    def __init__(self, rules: dict[str, object]):
        self.nodes, self._numbers = [], {}
        self.regular, self.nullable = [], []
        self.first, self.inner, self.tail, self.ext = [], [], [], []
        self._depth = []
        self.rules: dict[str, int] = {}
        order, cyclic = sorted_rules(rules)
        self._edges = edges_of(rules[name] for name in (*order, *cyclic))
        self.add("seq", ())
        for name in (*order, *cyclic):
            self.rules[name] = self._node(rules[name])
        # Rules in a circle, or that lead to one, were nodes before their content was known.

    def add(self, kind: str, *args) -> int:
        """The number of a node; simpler ones in place of some."""
        kind, args = self._simple(kind, args)
        if kind is None:
            return args
        key = (kind, *args)
        if key not in self._numbers:
            self._numbers[key] = len(self.nodes)
            self.nodes.append(key)
            for values, value in zip(
                (self.regular, self.nullable, self.first, self.inner, self.tail, self.ext),
                self._measured(kind, args),
                strict=True,
            ):
                values.append(value)
            self._depth.append(self._depth_of(kind, args))
        return self._numbers[key]

    def _simple(self, kind: str, args: tuple):
        if kind == "text" and not args[0]:
            return None, EMPTY
        if kind == "text" and len(args[0]) == 1:
            return "chars", (((ord(args[0]), ord(args[0])),),)
        if kind == "seq":
            items = [part for item in args[0] for part in (self.nodes[item][1] if self._is(item, "seq") else (item,))]
            return (None, items[0]) if len(items) == 1 else (kind, (tuple(items),))
        if kind == "alt":
            items = [part for item in args[0] for part in (self.nodes[item][1] if self._is(item, "alt") else (item,))]
            kept = list(dict.fromkeys(item for item in items if item != EMPTY))
            chars = [self.nodes[item][1] for item in kept if self._is(item, "chars")]
            if len(chars) > 1:  # one class of all single characters
                whole = self.add("chars", gbnf.merged([r for ranges in chars for r in ranges]))
                kept = list(dict.fromkeys(whole if self._is(item, "chars") else item for item in kept))
            if not kept:
                return None, EMPTY
            if EMPTY in items:
                return "rep", (kept[0] if len(kept) == 1 else self.add("alt", tuple(kept)), 0, 1)
            return (None, kept[0]) if len(kept) == 1 else (kind, (tuple(kept),))
        if kind == "rep":
            item, low, high = args
            if item == EMPTY or high == 0:
                return None, EMPTY
            if (low, high) == (1, 1):
                return None, item
        return kind, args

    def _is(self, node: int, kind: str) -> bool:
        return self.nodes[node][0] == kind

    def _node(self, tree) -> int:
        """The node of an expression."""
        if isinstance(tree, gbnf.Text):
            return self.add("text", tree.text)
        if isinstance(tree, gbnf.Chars):
            return self.add("chars", tree.ranges)
        if isinstance(tree, gbnf.Token):
            return self.add("token", tree.text, tree.other)
        if isinstance(tree, gbnf.Rule):
            return self.add("rule", tree.name)
        if isinstance(tree, gbnf.Repeat):
            return self.add("rep", self._node(tree.item), tree.low, tree.high)
        kind = "seq" if isinstance(tree, gbnf.Sequence) else "alt"
        return self.add(kind, tuple([self._node(item) for item in tree.items]))

    def _depth_of(self, kind: str, args: tuple) -> int:
        """Nodes within each other. IkpyError where llguidance, which goes through them by recursion, would not end."""
        if kind in ("seq", "alt"):
            inner = args[0]
        else:
            inner = (
                [args[0]]
                if kind == "rep"
                else [self.rules[args[0]]]
                if kind == "rule" and args[0] in self.rules
                else []
            )
        depth = 1 + max((self._depth[node] for node in inner), default=0)
        if depth > MAX_DEPTH:
            raise IkpyError(
                f"the grammar cannot be used: its rules and groups stand more than {MAX_DEPTH} deep in each other"
            )
        return depth

    def _mask(self, ranges) -> int:
        found = 0
        for low, high in ranges:
            found |= (1 << bisect_left(self._edges, high + 1)) - (1 << bisect_left(self._edges, low))
        return found

    def _measured(self, kind: str, args: tuple) -> tuple:
        """regular, nullable, first, inner, tail, ext."""
        if kind == "chars":
            mask = self._mask(args[0])
            return True, False, mask, mask, 0, 0
        if kind == "text":
            masks = [self._mask([(ord(c), ord(c))]) for c in args[0]]
            rest = 0
            for mask in masks[1:]:
                rest |= mask
            return True, False, masks[0], masks[0] | rest, rest, 0
        if kind == "token":
            return False, False, 0, 0, 0, 0
        if kind == "rule":
            node = self.rules.get(args[0])
            if node is None or not self.regular[node]:
                return False, False, 0, 0, 0, 0
            return tuple(v[node] for v in (self.regular, self.nullable, self.first, self.inner, self.tail, self.ext))
        if kind == "rep":
            item, _, high = args
            many = high is None or high > 1
            ext = self.ext[item] | (self.first[item] if many and high != args[1] else 0)
            if many and (self.ext[item] & self.first[item] or self.nullable[item]):
                ext = self.inner[item]
            tail = self.inner[item] if many else self.tail[item]
            nullable = args[1] == 0 or self.nullable[item]
            return self.regular[item], nullable, self.first[item], self.inner[item], tail, ext
        if kind == "alt":
            first = inner = tail = ext = 0
            overlap = False
            for item in args[0]:
                overlap = overlap or bool(first & self.first[item])
                first, inner = first | self.first[item], inner | self.inner[item]
                tail, ext = tail | self.tail[item], ext | self.ext[item]
            regular = all(self.regular[item] for item in args[0])
            return regular, any(self.nullable[item] for item in args[0]), first, inner, tail, tail if overlap else ext
        first = inner = tail = ext = 0
        nullable, clear = True, True
        for item in args[0]:
            tail = tail | self.tail[item] if nullable and not inner else tail | self.inner[item]
            clear = clear and not ext & self.first[item]
            if nullable:
                first |= self.first[item]
            inner |= self.inner[item]
            ext = self.ext[item] | (ext | self.first[item] if self.nullable[item] else 0)
            nullable = nullable and self.nullable[item]
        return all(self.regular[item] for item in args[0]), nullable, first, inner, tail, ext if clear else inner


def sorted_rules(rules: dict[str, object]) -> tuple[list[str], list[str]]:
    """Rules that root reaches: those that stand for a regular expression, inner ones first; and the others."""
    uses: dict[str, set[str]] = {}
    tokens = set()
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name in uses:
            continue
        uses[name] = set()
        parts = [rules[name]]
        while parts:
            part = parts.pop()
            if isinstance(part, gbnf.Rule):
                uses[name].add(part.name)
            elif isinstance(part, gbnf.Token):
                tokens.add(name)
            elif isinstance(part, gbnf.Repeat):
                parts.append(part.item)
            elif isinstance(part, gbnf.Sequence | gbnf.Choice):
                parts.extend(part.items)
        waiting.extend(sorted(uses[name]))
    users: dict[str, list[str]] = {name: [] for name in uses}
    for name, used in uses.items():
        for other in used:
            users[other].append(name)
    open_ = {name: len(used) + (name in tokens) for name, used in uses.items()}
    order = [name for name, n in open_.items() if n == 0]
    for name in order:
        for user in users[name]:
            open_[user] -= 1
            if open_[user] == 0:
                order.append(user)
    done = set(order)
    return order, [name for name in uses if name not in done]


def edges_of(trees) -> list[int]:
    """Code points at which a class of characters begins that the expressions tell apart."""
    found, parts = {0}, list(trees)
    while parts:
        part = parts.pop()
        if isinstance(part, gbnf.Text):
            found.update(edge for c in set(part.text) for edge in (ord(c), ord(c) + 1))
        elif isinstance(part, gbnf.Chars):
            found.update(edge for low, high in part.ranges for edge in (low, high + 1))
        elif isinstance(part, gbnf.Repeat):
            parts.append(part.item)
        elif isinstance(part, gbnf.Sequence | gbnf.Choice):
            parts.extend(part.items)
    return sorted(found)
