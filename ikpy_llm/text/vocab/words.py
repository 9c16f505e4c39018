"""Cuts text into words by the patterns of vocab/pre.py, with Python's `re` where that is sure to give the same words.

The patterns are written for Oniguruma, whose classes of characters (`\\p{L}`, ...) `re` lacks. The library `tokenizers`
has Oniguruma, but makes objects with positions of every word: 2.5 MB/s. `re` cuts 10 MB/s with the classes spelled out.
They are spelled for the characters that the text has, as Oniguruma itself sorts them; for ASCII they are known, so that
most prompts need no library at all.
"""

import re
from functools import cached_property

LONG = 20_000  # characters; to spell the classes of a text that is not ASCII takes as long as the library for so many

_ASCII = {
    "\\p{L}": "A-Za-z",
    "\\p{Lu}": "A-Z",
    "\\p{Ll}": "a-z",
    "\\p{Lt}": "",
    "\\p{Lm}": "",
    "\\p{Lo}": "",
    "\\p{M}": "",
    "\\p{N}": "0-9",
    "\\p{P}": "!-#%-*,-/:;?@\\[-\\]_{}",
    "\\p{S}": "$+<->\\^`|~",
    "\\d": "0-9",
    "\\s": "\t-\r ",
}
_NOTHING = "\ud800"  # a class needs something; no text has surrogates
_TOKEN = re.compile(r"\\p\{\w+\}|\\x\{\w+\}|\\.|\(\?[:!=]|&&|\[\^?|.", re.DOTALL)
_ASCII_ONLY = "".join(map(chr, range(128)))


class Words:
    """`cut(text)` gives the words of a text in order; each pattern cuts what the ones before it left as one piece."""

    def __init__(self, patterns: tuple[str, ...]):
        self._patterns = patterns
        self._alphabet, self._compiled = frozenset(), None
        self._translatable = all(_spelled(pattern, _ASCII) is not None for pattern in patterns)

    def cut(self, text: str) -> list[str]:
        if not self._translatable or (not text.isascii() and len(text) < LONG):
            return [word for word, _ in self.library.pre_tokenize_str(text)]
        if not text.isascii() and not self._alphabet.issuperset(text):
            self._alphabet |= {*text, *_ASCII_ONLY}
            self._compiled = self._compile(self._classes("".join(sorted(self._alphabet))))
        pieces = [text]
        for pattern in self._ascii if text.isascii() else self._compiled:
            pieces = [word for piece in pieces for word in pattern.split(piece) if word]
        return pieces

    @cached_property
    def library(self):
        """The pre-tokenizer of the library `tokenizers` for the same patterns."""
        from tokenizers import Regex, pre_tokenizers

        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self._patterns])

    @cached_property
    def _ascii(self) -> list[re.Pattern]:
        return self._compile(_ASCII)

    def _compile(self, classes: dict[str, str]) -> list[re.Pattern]:
        return [re.compile(f"({_spelled(pattern, classes)})") for pattern in self._patterns]

    def _classes(self, alphabet: str) -> dict[str, str]:
        """The classes of the patterns as ranges of characters that hold for `alphabet`, by the library's own word."""
        from tokenizers import Regex, pre_tokenizers

        found = {}
        for name in _ASCII:
            others = pre_tokenizers.Split(Regex(name + "+"), "removed").pre_tokenize_str(alphabet)
            borders = [0, *(end for _, ends in others for end in ends), len(alphabet)]  # members lie between the others
            pairs = zip(borders[::2], borders[1::2], strict=True)
            found[name] = "".join(f"{re.escape(alphabet[a])}-{re.escape(alphabet[b - 1])}" for a, b in pairs if a < b)
        return found


def _spelled(pattern: str, classes: dict[str, str]) -> str | None:
    """The pattern for `re` with its classes spelled out, None where that is not sure to mean the same."""
    out, inside, spaces = [], False, classes["\\s"]
    for token in _TOKEN.findall(pattern):
        if token in ("[", "[^") and not inside:
            inside = True
            out.append(token + _NOTHING)
        elif token == "]":
            inside = False
            out.append(token)
        elif token in classes:
            out.append(classes[token] if inside else f"[{_NOTHING}{classes[token]}]")
        elif token == "\\S" and not inside:
            out.append(f"[^{_NOTHING}{spaces}]")
        elif token == "$" and not inside:
            out.append(r"(?=\n|\Z)")  # the end of a line
        elif token.startswith("\\x"):
            out.append(re.escape(chr(int(token[3:-1], 16))))
        elif token in ("&&", "\\b", "\\S") or token.startswith("\\p") or (token == "(" and not inside):
            return None  # sets of sets, borders of words, other classes; groups that are kept or ignore case
        else:
            out.append(token)
    return "".join(out)
