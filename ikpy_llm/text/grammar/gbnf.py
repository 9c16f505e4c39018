"""Grammars in GBNF, llama.cpp's notation: text to a tree of expressions per rule."""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass

from ikpy_llm.errors import IkpyError, shown

LAST = 0x10FFFF  # the highest code point of Unicode
SURROGATES = (0xD800, 0xDFFF)  # halves of UTF-16 pairs, which are no characters
MAX_SIZE = 1_000_000  # characters of a grammar
MAX_DEPTH = 100  # groups within each other
MAX_REPEATS = 10_000  # the largest number in {m,n}
MAX_REPEATED = 4  # repetitions of repetitions, as in "a"?*
_NAME = frozenset(string.ascii_letters + string.digits + "-_")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
_DIGITS = {"x": 2, "u": 4, "U": 8}  # hexadecimal digits after an escape


@dataclass(frozen=True)
class Text:
    """These characters, which may be none."""

    text: str


@dataclass(frozen=True)
class Chars:
    """One character of these ranges of code points: sorted, apart from each other, ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Token:
    """One token of the vocabulary: `<text>`, or `<[id]>`; `!` before it: any other one."""

    text: str
    other: bool


@dataclass(frozen=True)
class Rule:
    """What the rule of this name stands for."""

    name: str


@dataclass(frozen=True)
class Sequence:
    """One after the other."""

    items: tuple


@dataclass(frozen=True)
class Choice:
    """One of them."""

    items: tuple


@dataclass(frozen=True)
class Repeat:
    """`low` to `high` times (None: without a limit)."""

    item: object
    low: int
    high: int | None


def parse(text: str) -> dict[str, object]:
    """The expression of every rule, by name. IkpyError, with the line, for what is no GBNF."""
    if len(text) > MAX_SIZE:
        raise IkpyError(f"the grammar has {len(text)} characters; up to {MAX_SIZE} are accepted")
    reader = _Reader(text)
    rules = reader.rules()
    for name, at in reader.used.items():
        if name not in rules:
            raise reader.wrong(f"there is no rule called {shown(name)}", at)
    if "root" not in rules:
        raise reader.wrong("there is no rule called 'root', with which a text begins", 0)
    return rules


class _Reader:
    """Where reading stands in a grammar."""

    def __init__(self, text: str):
        self.text, self.at, self.used = text, 0, {}  # used: names, and where each stands first

    def wrong(self, what: str, at: int | None = None) -> IkpyError:
        line = self.text.count("\n", 0, self.at if at is None else at) + 1
        return IkpyError(f"the grammar cannot be used: line {line}: {what}")

    def expected(self, what: str) -> IkpyError:
        found = shown(self.text[self.at : self.at + 20].split("\n")[0]) if self.at < len(self.text) else "the end"
        return self.wrong(f"expected {what}, found {found}")

    def peek(self, n: int = 1) -> str:
        return self.text[self.at : self.at + n]

    def take(self, text: str) -> bool:
        if not self.text.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def space(self, lines: bool) -> None:
        """Skip blanks and comments, and line ends if `lines`."""
        while self.at < len(self.text):
            c = self.text[self.at]
            if c == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif c in " \t" or (lines and c in "\r\n"):
                self.at += 1
            else:
                return

    def rules(self) -> dict[str, object]:
        found = {}
        self.space(True)
        while self.at < len(self.text):
            name = self.name("the name of a rule")
            self.space(False)
            if not self.take("::="):
                raise self.expected("::=")
            self.space(True)
            found[name] = self.choice(0)
            if self.at < len(self.text) and self.peek() not in "\r\n":
                raise self.expected("an element of a rule or the end of the line")
            self.space(True)
        return found

    def name(self, what: str) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] in _NAME:
            self.at += 1
        if self.at == start:
            raise self.expected(what)
        return self.text[start : self.at]

    def choice(self, depth: int):
        if depth > MAX_DEPTH:
            raise self.wrong(f"groups stand more than {MAX_DEPTH} deep in each other")
        items = [self.sequence(depth)]
        while self.more():
            self.space(True)
            items.append(self.sequence(depth))
        return items[0] if len(items) == 1 else Choice(tuple(items))

    def more(self) -> bool:
        """Does another alternative follow, here or at the beginning of the next line?"""
        before = self.at
        self.space(True)
        if self.take("|"):
            return True
        self.at = before
        return False

    def sequence(self, depth: int):
        items = []
        while self.at < len(self.text):
            item = self.element(depth)
            if item is None:
                break
            self.space(depth > 0)
            for n in itertools.count(1):
                if (limits := self.limits()) is None:
                    break
                if n > MAX_REPEATED:
                    raise self.wrong(f"more than {MAX_REPEATED} repetitions of repetitions")
                item = Repeat(item, *limits)
                self.space(depth > 0)
            items.append(item)
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def element(self, depth: int):
        """What stands here, None where a sequence ends."""
        c = self.peek()
        if c == '"':
            return self.literal()
        if c == "[":
            return self.chars()
        if c == ".":
            self.at += 1
            return Chars(merged([(0, LAST)]))
        if c == "(":
            self.at += 1
            self.space(True)
            inner = self.choice(depth + 1)
            self.space(True)
            if not self.take(")"):
                raise self.expected("an element of a rule or )")
            return inner
        if c in "<!":
            return self.token()
        if c in _NAME:
            at, name = self.at, self.name("a name")
            self.used.setdefault(name, at)
            return Rule(name)
        if c in "*+?{":
            raise self.expected(f"an element of a rule before {c}")
        return None

    def limits(self) -> tuple[int, int | None] | None:
        """How often the last element may come, if that is said here."""
        c = self.peek()
        if c and c in "*+?":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        if not self.take("{"):
            return None
        low = high = self.number()
        if self.take(","):
            self.space(True)
            high = None if self.peek() == "}" else self.number()
        if not self.take("}"):
            raise self.expected("}")
        if high is not None and high < low:
            raise self.wrong(f"{{{low},{high}}} ends below its beginning")
        return low, high

    def number(self) -> int:
        self.space(True)
        start = self.at
        while self.peek() and self.peek() in string.digits:
            self.at += 1
        if start == self.at:
            raise self.expected("a number")
        text = self.text[start : self.at]
        if len(text) > 9 or int(text) > MAX_REPEATS:
            raise self.wrong(f"{shown(text)} repetitions; up to {MAX_REPEATS} are accepted")
        self.space(True)
        return int(text)

    def literal(self) -> Text:
        self.at += 1
        out = []
        while not self.take('"'):
            if self.at >= len(self.text):
                raise self.expected('"')
            out.append(self.character())
        return Text("".join(out))

    def character(self) -> str:
        """One character of a text or of a range, escapes resolved."""
        c = self.peek()
        if not c:
            raise self.expected("a character")
        self.at += 1
        if SURROGATES[0] <= ord(c) <= SURROGATES[1]:
            raise self.wrong(f"{shown(c)} is no character of Unicode")
        if c != "\\":
            return c
        c = self.peek()
        self.at += 1
        if c in _DIGITS and c:
            digits = self.peek(_DIGITS[c])
            if len(digits) < _DIGITS[c] or not set(digits) <= set(string.hexdigits):
                raise self.expected(f"{_DIGITS[c]} hexadecimal digits")
            code = int(digits, 16)
            if code > LAST or SURROGATES[0] <= code <= SURROGATES[1]:
                raise self.wrong(f"\\{c}{digits} is no character of Unicode")
            self.at += len(digits)
            return chr(code)
        if c in _ESCAPES:
            return _ESCAPES[c]
        if not c or c.isalnum():
            self.at -= 1
            raise self.expected("one of \\x \\u \\U \\t \\r \\n or a punctuation mark after \\")
        return c

    def chars(self) -> Chars:
        self.at += 1
        negated, found = self.take("^"), []
        while not self.take("]"):
            if self.at >= len(self.text):
                raise self.expected("]")
            low = high = ord(self.character())
            if self.peek() == "-" and self.peek(2) not in ("-]", "-"):
                self.at += 1
                high = ord(self.character())
            if high < low:
                raise self.wrong(f"the range {shown(chr(low))} to {shown(chr(high))} ends below its beginning")
            found.append((low, high))
        ranges = merged(found)
        if negated:
            ranges = without(ranges)
        if not ranges:
            raise self.wrong("a range without any character")
        return Chars(ranges)

    def token(self) -> Token:
        other = self.take("!")
        end = self.text.find(">", self.at)
        text = self.text[self.at : end + 1]
        if not self.take("<") or end < 0 or "\n" in text or len(text) < 3:
            raise self.expected("a token, <text> or <[id]>")
        self.at = end + 1
        if text.startswith("<[") and not (text.endswith("]>") and text[2:-2].isdecimal()):
            raise self.wrong(f"{shown(text)} is no token; <[id]> has a number")
        return Token(text, other)


def merged(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same characters as sorted ranges that do not touch, without surrogates."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        for a, b in ((low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)):
            if a > b:
                continue
            if out and a <= out[-1][1] + 1:
                out[-1] = out[-1][0], max(out[-1][1], b)
            else:
                out.append((a, b))
    return tuple(out)


def without(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """All characters but these."""
    edges = [-1, *(edge for low, high in ranges for edge in (low - 1, high)), LAST]
    return merged([(a + 1, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b])
