"""t5-type (SentencePiece unigram) vocabularies: the likeliest pieces, by the sentencepiece library itself.

The library reads a model in its protobuf format, so one is written from the file's pieces, scores and types.
"""

import struct

from ikpy_llm.errors import ModelFileError, shown

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types, with the same numbers in both formats
UNIGRAM = 1


class UgmEncoder:
    """Text without special tokens -> ids. `charsmap` is the library's compiled normalization, b"" for none."""

    def __init__(
        self, raw, scores, types, unknown: int, charsmap: bytes, space_prefix: bool, merge_spaces: bool, where: str
    ):
        from sentencepiece import SentencePieceProcessor

        pieces, seen = [], set()
        for i, (piece, score, kind) in enumerate(zip(raw, scores, types, strict=True)):
            if piece in seen or not piece:  # the library refuses them; of equal pieces the first is found
                piece, kind = b"<ikpy unused %d>" % i, CONTROL
            seen.add(piece)
            kind = UNKNOWN if i == unknown else CONTROL if kind == UNKNOWN else kind
            pieces.append(_field(1, _field(1, piece) + _float(2, score) + _number(3, kind)))
        trainer = _number(3, UNIGRAM) + _number(35, BYTE in types) + _number(40, unknown)
        normalizer = _field(2, charsmap) + _number(3, space_prefix) + _number(4, merge_spaces) + _number(5, 1)
        try:
            model = b"".join(pieces) + _field(2, trainer) + _field(3, normalizer)
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise ModelFileError(f"{where}: sentencepiece refuses the vocabulary: {shown(text, 160)[1:-1]}") from None

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)


# --- protobuf: a field is its number and wire type, then a varint, a float, or a length and bytes ---


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
