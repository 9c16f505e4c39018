"""gpt2-type vocabularies: byte-level BPE. `tokenizer.ggml.pre` names how text is cut into words before merging."""

import logging
from dataclasses import dataclass

from ikpy_llm.engine.vocab_merge import merge
from ikpy_llm.errors import ModelFileError, shown

log = logging.getLogger("ikpy.vocab")
CACHED_WORDS = 100_000

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LLAMA3 = (
    _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # digits
)
_CJK = "[一-龥\u0800-一가-\ud7ff]+"
# letters with case, as DeepSeek lists them; spelled as code points because many look alike
_CASED = (
    r"A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}"
    r"\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}"
    r"\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}"
    r"\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}"
    r"\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}"
    r"\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}"
    r"\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}"
    r"\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}"
    r"\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}"
    r"\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}"
    r"\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}"
    r"\x{118a0}-\x{118df}\x{1e900}-\x{1e943}"
)


@dataclass(frozen=True)
class Pre:
    """How text becomes words: each pattern cuts its matches out of what the ones before it left as one piece."""

    patterns: tuple[str, ...]
    whole_words: bool = False  # a word that is a token is taken without merging
    add_bos: bool = False  # where the file does not say


# Every row reproduces the reference's ids on all its test strings; deepseek-v3 on the prompts of one small model only.
PRE = {
    "gpt-2": Pre((_GPT2,)),
    "mpt": Pre((_GPT2,)),
    "smollm": Pre((r"\p{N}", _GPT2)),
    "starcoder": Pre((r"\p{N}", _GPT2)),
    "refact": Pre((r"\p{N}", _GPT2)),
    "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "falcon": Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "llama-bpe": Pre((_LLAMA3 % 3,), whole_words=True, add_bos=True),
    "qwen2": Pre((_LLAMA3 % 1,)),
    "deepseek-llm": Pre(
        ("[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, r"\p{N}+")
    ),
    "deepseek-v3": Pre(
        (
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "deepseek-coder": Pre(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
}
PRE["llama3"] = PRE["llama-v3"] = PRE["llama-bpe"]  # older names of the same
FALLBACK = "gpt-2"


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next free from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte if byte in plain else 256 + others.index(byte)) for byte in range(256)]


_LETTERS = _byte_letters()
_SYMBOLS = [letter.encode() for letter in _LETTERS]
_BYTES = {letter: bytes([byte]) for byte, letter in enumerate(_LETTERS)}


def pre_type(name: str | None, path) -> Pre:
    """The row of PRE for `tokenizer.ggml.pre`; unknown ones warn and cut as GPT-2 does."""
    name = "default" if name is None else name
    if name not in PRE:
        log.warning(
            "%s: tokenizer.ggml.pre is %s, which is not known; text is cut into words as for %s, and the model's "
            "answers may be worse. Known: %s",
            *(path, shown(name), FALLBACK, ", ".join(PRE)),
        )
    return PRE.get(name, PRE[FALLBACK])


class BpeEncoder:
    """Text without special tokens -> ids; `ids` maps the file's token texts to ids, `merges` are its merges."""

    def __init__(self, pre: Pre, ids: dict[bytes, int], merges: list[bytes], where: str):
        for i, pair in enumerate(merges):
            if not 0 < pair.find(b" ", 1) < len(pair) - 1:
                raise ModelFileError(
                    f"{where}: merge {i} is {shown(pair)}; two pieces with a space between are expected"
                )
        # of equal merges the first counts
        self._ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
        self._ids, self._whole_words, self._cache = ids, pre.whole_words, {}
        from tokenizers import Regex, pre_tokenizers

        self._words = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        )

    def encode(self, text: str) -> list[int]:
        out, cache = [], self._cache
        for word, _ in self._words.pre_tokenize_str(text):
            ids = cache.get(word)
            if ids is None:
                if len(cache) >= CACHED_WORDS:
                    cache.clear()
                ids = cache[word] = self._encode_word(word.encode())
            out += ids
        return out

    def _encode_word(self, word: bytes) -> list[int]:
        symbols = [_SYMBOLS[byte] for byte in word]
        if self._whole_words:
            whole = self._ids.get(b"".join(symbols))
            if whole is not None:
                return [whole]
        out = []
        for symbol in merge(symbols, self._ranks, b" "):
            if symbol in self._ids:
                out.append(self._ids[symbol])
            else:  # as the reference: a piece that is no token falls apart, and what is no token is dropped
                out += [
                    self._ids[byte] for byte in (symbol[i : i + 1] for i in range(len(symbol))) if byte in self._ids
                ]
        return out


def bpe_bytes(piece: bytes) -> bytes:
    """The bytes that a normal token's text stands for."""
    return b"".join(_BYTES.get(letter) or letter.encode() for letter in piece.decode("utf-8", "replace"))
