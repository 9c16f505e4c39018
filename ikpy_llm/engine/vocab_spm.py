"""llama-type (SentencePiece) vocabularies: characters are merged into the best-scored pieces, the rest become bytes."""

import re

from ikpy_llm.engine.vocab_merge import joined, merge

SPACE = "\u2581"  # stands for a space inside pieces


class SpmEncoder:
    """Text without special tokens -> ids; `raw` are the file's token texts, `ids` the reverse, `scores` the ranks."""

    def __init__(self, raw: list[bytes], scores: list[float], ids: dict[bytes, int], unknown: int | None):
        self._ids, self._unknown, self._cache = ids, unknown, {}
        self._ranks = dict(zip(raw, (-score for score in scores), strict=True))
        self._bytes = [ids.get(b"<0x%02X>" % byte, ids.get(bytes([byte]), unknown)) for byte in range(256)]
        # No piece spans a cut before a space unless some piece has that very pair inside, so words merge on their own.
        text = b"\0".join(raw).decode("utf-8", "replace")
        before = "".join(sorted(set(re.findall(f"([^\0])(?={SPACE})", text))))
        self._cut = re.compile(f"(?<=[^{re.escape(before)}])(?={SPACE})" if before else f"(?={SPACE})", re.DOTALL)

    def encode(self, text: str) -> list[int]:
        return joined(self._cut.split(text.replace(" ", SPACE)), self._cache, self._encode_word)

    def _encode_word(self, word: str) -> list[int]:
        out = []
        for symbol in merge([letter.encode() for letter in word], self._ranks, b""):
            if symbol in self._ids:
                out.append(self._ids[symbol])
            else:
                out += [self._bytes[byte] for byte in symbol if self._bytes[byte] is not None]
        return out


def spm_bytes(piece: bytes) -> bytes:
    """The bytes that a normal token's text stands for."""
    return piece.replace(SPACE.encode(), b" ")
