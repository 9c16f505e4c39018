"""llama-type (SentencePiece) vocabularies: characters are merged into the best-scored pieces, the rest become bytes."""

from ikpy_llm.text.vocab.merge import SPACE, cutter, joined, merge_letters


class SpmEncoder:
    """Text without special tokens -> ids; `raw` are the file's token texts, `ids` the reverse, `scores` the ranks."""

    def __init__(self, raw: list[bytes], scores: list[float], ids: dict[bytes, int], unknown: int | None):
        self._ids, self._unknown, self._cache = ids, unknown, {}
        self._ranks = dict(zip(raw, (-score for score in scores), strict=True))
        self._bytes = [ids.get(b"<0x%02X>" % byte, ids.get(bytes([byte]), unknown)) for byte in range(256)]
        self._cut = cutter(b"\0".join(raw).decode("utf-8", "replace"), f"([^\0])(?={SPACE})")

    def encode(self, text: str) -> list[int]:
        return joined(self._cut.split(text.replace(" ", SPACE)), self._cache, self._encode_word)

    def _encode_word(self, word: str) -> list[int]:
        out = []
        for symbol in merge_letters(word, self._ranks, b""):
            if symbol in self._ids:
                out.append(self._ids[symbol])
            else:
                out += [self._bytes[byte] for byte in symbol if self._bytes[byte] is not None]
        return out


def spm_bytes(piece: bytes) -> bytes:
    """The bytes that a normal token's text stands for."""
    return piece.replace(SPACE.encode(), b" ")
