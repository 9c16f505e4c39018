"""t5-type (SentencePiece unigram) vocabularies: of all ways to cut a text into pieces, the one of the highest score.

The text is normalized by the sentencepiece library. The pieces are found here: the library adds scores up in 32 bits,
so that rounding errors choose between ways that are equally good. Hugging Face's library, which the models come with,
and llama.cpp add up in 64 bits, which is exact for scores of 32 bits.
"""

import math

from ikpy_llm.errors import ModelFileError, shown
from ikpy_llm.text.vocab.merge import AT_ONCE, SPACE, cutter, joined
from ikpy_llm.text.vocab.special import BYTE, NORMAL, USER_DEFINED

_UNKNOWN_PENALTY = 10.0  # an unknown character scores so much less than the worst piece


class UgmEncoder:
    """Text without special tokens -> ids. `charsmap` is the library's compiled normalization, b"" for none."""

    def __init__(
        self, raw, scores, types, unknown: int, charsmap: bytes, space_prefix: bool, merge_spaces: bool, where: str
    ):
        from sentencepiece import SentencePieceNormalizer

        try:
            self._normalizer = SentencePieceNormalizer(
                model_proto=_field(3, _field(2, charsmap)),
                add_dummy_prefix=space_prefix,
                escape_whitespaces=True,
                remove_extra_whitespaces=merge_spaces,
            )
            self._normalizer.Normalize("a")
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise ModelFileError(
                f"{where}: sentencepiece refuses the normalization: {shown(text, 160)[1:-1]}"
            ) from None
        self._unknown, self._cache, self._pieces, self._longest = unknown, {}, {}, {}
        worst = min((score for score, kind in zip(scores, types, strict=True) if kind == NORMAL), default=0.0)
        for i, (piece, score, kind) in enumerate(zip(raw, scores, types, strict=True)):
            if kind not in (NORMAL, USER_DEFINED) or i == unknown or not piece:
                continue
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                continue  # no text has it
            if text not in self._pieces:  # of equal pieces the first counts
                self._pieces[text] = (0.0 if kind == USER_DEFINED else score, i)
                self._longest[text[0]] = max(self._longest.get(text[0], 1), len(text))
        self._unknown_score = worst - _UNKNOWN_PENALTY
        self._longest_piece = max(self._longest.values(), default=1)
        bytes_ = {piece: i for i, (piece, kind) in enumerate(zip(raw, types, strict=True)) if kind == BYTE}
        found = [bytes_.get(b"<0x%02X>" % byte) for byte in range(256)]
        self._bytes = None if None in found else found  # what stands for unknown characters
        self._cut = cutter("\0".join(self._pieces), f"([^\0])(?={SPACE})") if SPACE in self._pieces else None

    def encode(self, text: str) -> list[int]:
        text = self._normalizer.Normalize(text)
        return joined(self._cut.split(text) if self._cut else (text,), self._cache, self._encode_word)

    def _encode_word(self, word: str) -> list[int]:
        """In parts, because a word may be as long as the text: each ends where all best ways of going on meet."""
        out, at, size = [], 0, AT_ONCE
        while at < len(word):
            part = word[at : at + size]
            starts, tokens = self._best_ways(part)
            end = len(part)
            if at + end < len(word):
                # the best way through the whole word has a piece that ends at one of the last positions
                ends = set(range(max(end - self._longest_piece + 1, 0), end + 1))
                while len(ends) > 1:
                    last = max(ends)
                    ends = ends - {last} | {starts[last]}
                end = ends.pop()
            if not end:
                size *= 2
                continue
            ids = self._way(part, end, starts, tokens)
            out += ids[1:] if out and out[-1] == ids[0] == self._unknown else ids
            at, size = at + end, AT_ONCE
        return out

    def _best_ways(self, word: str) -> tuple[list[int], list[int]]:
        """starts[i], tokens[i]: the last piece of the best way to cut the first i characters."""
        pieces, n = self._pieces, len(word)
        best, starts, tokens = [0.0] + [-math.inf] * n, [0] * (n + 1), [self._unknown] * (n + 1)
        for i, letter in enumerate(word):
            known = False
            for j in range(i + 1, min(n, i + self._longest.get(letter, 0)) + 1):
                found = pieces.get(word[i:j])
                if found is not None:
                    known = known or j == i + 1
                    score = best[i] + found[0]
                    if score > best[j]:  # of equal ones the first stays, whose last piece is the longest
                        best[j], starts[j], tokens[j] = score, i, found[1]
            if not known and best[i] + self._unknown_score > best[i + 1]:
                best[i + 1], starts[i + 1], tokens[i + 1] = best[i] + self._unknown_score, i, self._unknown
        return starts, tokens

    def _way(self, word: str, end: int, starts: list[int], tokens: list[int]) -> list[int]:
        """The ids of the best way to cut the first `end` characters; unknown ones side by side are one token."""
        out = []
        while end:
            start, token = starts[end], tokens[end]
            if token != self._unknown:
                out.append(token)
            elif self._bytes:
                out += [self._bytes[byte] for byte in reversed(word[start:end].encode())]
            elif not out or out[-1] != token:
                out.append(token)
            end = start
        return out[::-1]


def _field(field: int, data: bytes) -> bytes:
    """A field of bytes, as protobuf writes it: number and wire type, length, bytes."""
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])
