"""bert-type (WordPiece) vocabularies: words of lower-case letters, cut into the longest pieces from the left."""

import re

from ikpy_llm.text.vocab.merge import SPACE, joined

_CLEANED = re.compile(r" (?=[?!.,])| (?='(?:s|m|re|ve))| (?=' )|(?<= ') ")
_BORDERS = re.compile("[ \n]+|(?<=[\u4e00-\u9fff])")  # no word of the library lies across; ideographs are words


class WpmEncoder:
    """Text without special tokens -> ids: the WordPiece of Hugging Face's library on the file's pieces.

    Longer words than 100 characters and words of which some part is no piece become `unknown`.
    """

    def __init__(self, raw: list[bytes], unknown: int, lowercase: bool, strip_accents: bool):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        unk = "[UNK]"  # of the library; no text has it as a word, because brackets are words of their own
        texts = (piece.decode("utf-8", "replace") for piece in raw)
        pieces = {t.removeprefix(SPACE) if t.startswith(SPACE) else f"##{t}": i for i, t in enumerate(texts)}
        self._tokenizer = Tokenizer(models.WordPiece({**pieces, unk: unknown}, unk_token=unk))
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._cache = {}

    def encode(self, text: str) -> list[int]:
        return joined(filter(None, _BORDERS.split(text)), self._cache, self._encode_word)

    def _encode_word(self, word: str) -> list[int]:
        return self._tokenizer.encode(word, add_special_tokens=False).ids


def cleaned(text: str) -> str:
    """Decoded words without the spaces that stand before punctuation and in contractions, as llama.cpp cleans them."""
    return _CLEANED.sub("", text).removeprefix(" ")
