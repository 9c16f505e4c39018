"""GBNF to llguidance's Lark: which parts of a grammar become its terminals, and the text of both.

llguidance reads a text as terminals, each as long as can be, while a GBNF grammar is about characters. A grammar
without recursion is one terminal. In others the parts without recursion are terminals, where the longest match is the
only one: where nothing that may follow a part, or stand in its place, can be taken for more of it. The rest is taken
apart.
"""

from __future__ import annotations

from collections.abc import Callable

from ikpy_llm.errors import IkpyError, shown
from ikpy_llm.text.grammar import gbnf
from ikpy_llm.text.grammar.conflicts import conflicts
from ikpy_llm.text.grammar.terms import Terms

MAX_GROUPS = 6  # in each other on a line; llguidance reads 30
MAX_CIRCLE = 1000  # rules that are no regular expressions; llguidance goes through them by recursion
MAX_EFFORT = 500_000  # pairs of parts that are compared; what is left then reads the longest match


def to_lark(source: str, token_ids: Callable[[str], list[int]] | None = None) -> str:
    """The same grammar for llguidance. `token_ids`: the tokens of a text, for `<text>` in a grammar.

    IkpyError for what is no GBNF, and for a `<text>` that is not one token.
    """
    try:
        return _converted(Terms(gbnf.parse(source)), token_ids)
    except RecursionError:
        raise IkpyError("the grammar cannot be used: its groups stand too deep in each other") from None


def _converted(terms: Terms, token_ids) -> str:
    root = terms.rules["root"]
    if terms.regular[root]:
        trees = {"root": ("term", root)}
    else:
        split, effort = set(), MAX_EFFORT
        while True:
            trees = _trees(terms, split)
            if len(trees) > MAX_CIRCLE:
                raise IkpyError(
                    f"the grammar cannot be used: {len(trees)} of its rules refer to themselves through others; up to "
                    f"{MAX_CIRCLE} are accepted"
                )
            wrong, spent = conflicts(terms, trees, effort)
            effort -= spent
            if wrong <= split:
                break
            split |= wrong
    return _written(terms, trees, token_ids)


# A rule's tree: ("term", node), ("rule", name), ("token", text, other), ("seq", trees), ("alt", trees) and
# ("rep", tree, low, high).


def _trees(terms: Terms, split: set[int]) -> dict[str, tuple]:
    """The trees of the rules that are needed when the nodes of `split` are no terminals."""
    trees: dict[str, tuple] = {}
    waiting = ["root"]

    def tree(node: int) -> tuple:
        kind, *args = terms.nodes[node]
        if kind == "chars" or (terms.regular[node] and node not in split):
            # A terminal has no empty text.
            return ("rep", ("term", node), 0, 1) if terms.nullable[node] else ("term", node)
        if kind == "text":
            return ("seq", [("term", terms.add("text", c)) for c in args[0]])
        if kind == "token":
            return ("token", *args)
        if kind == "rule":
            waiting.append(args[0])
            return ("rule", args[0])
        if kind == "rep":
            return ("rep", tree(args[0]), *args[1:])
        if kind == "alt" or terms.regular[node]:
            return (kind, [tree(item) for item in args[0]])
        runs: list[list[int]] = []
        for item in args[0]:
            if runs and terms.regular[runs[-1][0]] and terms.regular[item]:
                runs[-1].append(item)
            else:
                runs.append([item])
        return ("seq", [tree(terms.add("seq", tuple(run))) for run in runs])

    while waiting:
        name = waiting.pop()
        if name not in trees:
            trees[name] = ()
            trees[name] = tree(terms.rules[name])
    return trees


def _written(terms: Terms, trees: dict[str, tuple], token_ids) -> str:
    """The text of the grammar. Parts that stand deep get a line of their own: Lark is read by recursion."""
    names = {name: f"r{i}" for i, name in enumerate(trees)}
    lines, parts = [f"start: {names['root']}"], [(names[name], tree) for name, tree in trees.items()]
    terminals, known = [], set()

    def terminal(node: int) -> str:
        if node not in known:
            known.add(node)
            terminals.append(node)
        return f"T{node}"

    def rule(tree, depth: int = 0) -> str:
        kind, *args = tree
        if kind == "term":
            return terminal(args[0])
        if kind == "rule":
            return names[args[0]]
        if kind == "token":
            return _token(*args, token_ids)
        if depth == MAX_GROUPS:
            parts.append((f"p{len(parts)}", tree))
            return parts[-1][0]
        if kind == "rep":
            return f"({rule(args[0], depth + 1)}){_times(*args[1:])}"
        return "(" + {"seq": " ", "alt": " | "}[kind].join([rule(item, depth + 1) for item in args[0]]) + ")"

    def regex(node: int, depth: int = 0) -> str:
        kind, *args = terms.nodes[node]
        if kind == "rule":
            return terminal(terms.rules[args[0]])
        if kind == "text":
            return f"/{''.join(_escaped(ord(c)) for c in args[0])}/"
        if kind == "chars":
            ranges = (_escaped(a) if a == b else f"{_escaped(a)}-{_escaped(b)}" for a, b in args[0])
            return f"/[{''.join(ranges)}]/"
        if depth == MAX_GROUPS:
            return terminal(node)
        if kind == "rep":
            return f"({regex(args[0], depth + 1)}){_times(*args[1:])}"
        return "(" + {"seq": " ", "alt": " | "}[kind].join([regex(item, depth + 1) for item in args[0]]) + ")"

    for name, tree in parts:  # both lists grow on the way
        lines.append(f"{name}: {rule(tree)}")
    for node in terminals:
        lines.append(f"T{node}: {regex(node)}")
    return "\n".join(lines) + "\n"


def _token(text: str, other: bool, token_ids) -> str:
    """`<text>` or `<[id]>`, or any token but that one."""
    if not text.startswith("<["):
        ids = token_ids(text) if token_ids is not None else []
        if len(ids) != 1:
            raise IkpyError(f"the grammar cannot be used: {shown(text)} is not one token of the vocabulary")
        text = f"<[{ids[0]}]>"
    return text.replace("[", "[^", 1) if other else text


def _times(low: int, high: int | None) -> str:
    known = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return known.get((low, high)) or f"{{{low},{'' if high is None else high}}}"


def _escaped(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\x{{{code:X}}}"
