"""gpt2-type vocabularies: BPE over the words that vocab/words.py cuts, on bytes or (raw rows) on characters."""

from itertools import repeat

from ikpy_llm.errors import ModelFileError, shown
from ikpy_llm.text.vocab.merge import SPACE, cutter, joined, merge_letters
from ikpy_llm.text.vocab.pre import Pre
from ikpy_llm.text.vocab.words import Words


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next free from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte if byte in plain else 256 + others.index(byte)) for byte in range(256)]


_LETTERS = _byte_letters()
_SYMBOLS = [letter.encode() for letter in _LETTERS]
_BYTES = {letter: bytes([byte]) for byte, letter in enumerate(_LETTERS)}


class BpeEncoder:
    """Text without special tokens -> ids; `ids` maps the file's token texts to ids, `merges` are its merges."""

    def __init__(self, pre: Pre, ids: dict[bytes, int], merges: list[bytes], where: str):
        spaces = list(map(bytes.find, merges, repeat(b" "), repeat(1), repeat(-1)))  # neither first nor last byte
        if -1 in spaces:
            i = spaces.index(-1)
            raise ModelFileError(
                f"{where}: merge {i} is {shown(merges[i])}; two pieces with a space between are expected"
            )
        # of equal merges the first counts
        self._ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
        self._ids, self._pre, self._cache, self._words = ids, pre, {}, Words(pre.patterns)
        # the words of raw rows are lines
        text = b"\0".join(merges).decode("utf-8", "replace") if pre.raw else ""
        self._cut = cutter(text, f"([^\0]) (?={SPACE})")

    def encode(self, text: str) -> list[int]:
        if not self._pre.raw:
            return joined(self._words.cut(text), self._cache, self._encode_word)
        lines = self._words.cut(text.replace(" ", SPACE))
        return joined([word for line in lines for word in self._cut.split(line)], self._cache, self._encode_word)

    def _encode_word(self, word: str) -> list[int]:
        raw = self._pre.raw
        letters = word if raw else word.encode().decode("latin-1").translate(_LETTERS)
        if self._pre.whole_words and not (raw and word.strip("\n")):  # of raw words only line ends
            whole = self._ids.get(letters.encode())
            if whole is not None:
                return [whole]
        out = []
        for symbol in merge_letters(letters, self._ranks, b" "):
            if symbol in self._ids:
                out.append(self._ids[symbol])
            else:  # as the reference: a piece that is no token falls apart, and what is no token is dropped
                names = [b"<0x%02X>" % byte if raw else bytes([byte]) for byte in symbol]
                out += [self._ids[name] for name in names if name in self._ids]
        return out


def bpe_bytes(piece: bytes) -> bytes:
    """The bytes that a normal token's text stands for."""
    return b"".join(_BYTES.get(letter) or letter.encode() for letter in piece.decode("utf-8", "replace"))
