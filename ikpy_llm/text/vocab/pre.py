"""How text is cut into words before BPE merges them: the row of PRE that `tokenizer.ggml.pre` names."""

import logging
from dataclasses import dataclass

from ikpy_llm.errors import shown

log = logging.getLogger("ikpy.vocab")

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
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # punctuation and white space


def _by_case(ending: str = "", but: str = "") -> str:
    """Words of which capitals begin a new one, as tekken and GPT-4o have them. but: a class no word may hold."""
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{upper}*{lower}+{ending}|{start}{upper}+{lower}*{ending}"


_GPT4O = _by_case(_ENDINGS + "?") + r"|\p{N}{1,3}" + _TAIL


@dataclass(frozen=True)
class Pre:
    """How text becomes words: each pattern cuts its matches out of what the ones before it left as one piece.

    raw: pieces are plain UTF-8 with U+2581 for a space, not GPT-2's letters for bytes; what no piece covers becomes
    byte tokens `<0x0A>`.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False  # a word that is a token is taken without merging
    add_bos: bool = False  # where the file does not say
    needs_bos: bool = False  # whatever the file says: first conversions of Gemma 4 deny it
    raw: bool = False


# Names and rows are llama.cpp's; where it had to approximate a model's own pattern (tekken, GPT-4o, Kimi K2, Bailing),
# this is the model's. Those in tests/data/vocab_cases.json.xz gave the reference's ids on all its test strings
# (deepseek-v3 on the prompts of one small model only).
_ROWS = {
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat mellum modern-bert a.x-4.0 jina-es jina-de "
    "jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe": Pre((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Pre((r"\p{N}", _GPT2)),
    "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "falcon": Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Pre(
        (_LLAMA3 % 3,), whole_words=True, add_bos=True
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": Pre((_LLAMA3 % 3,)),
    "qwen2 deepseek-r1-qwen megrez kormo f2llmv2 stablelm2 hunyuan solar-open grok-2": Pre((_LLAMA3 % 1,)),
    "qwen35": Pre((_LLAMA3.replace(r"\p{L}\p{N}]+", r"\p{L}\p{M}\p{N}]+").replace(r"?\p{L}+", r"?[\p{L}\p{M}]+") % 1,)),
    "ufakzeka": Pre(((_LLAMA3 % 1).removeprefix(_ENDINGS + "|"),)),
    "laguna": Pre((r"[^\n]+|\n+", _LLAMA3 % 1)),
    "minicpm5": Pre((r"\p{N}{1,3}", _LLAMA3.replace("{1,%d}", "+")), whole_words=True),
    "seed-coder": Pre((_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",)),
    "jais-2": Pre(
        (
            (_LLAMA3 % 3).removesuffix(r"\s+(?!\S)|\s+")
            + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
            + r"|\s",
        )
    ),
    "bailingmoe bailingmoe2 llada-moe": Pre(
        (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
    "exaone-moe": Pre(
        (
            _ENDINGS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "tekken": Pre((_by_case() + r"|\p{N}" + _TAIL,), whole_words=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Pre((_GPT4O,)),
    "granite-embed-multi-97m": Pre((_GPT4O,), whole_words=True),
    "tiny_aya cohere2moe": Pre((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    "kimi-k2": Pre(
        (
            r"\p{Han}+|" + _by_case(_ENDINGS + "?", r"&&[^\p{Han}]") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "youtu": Pre(
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+",
            _by_case(_ENDINGS + "?") + r"|\p{N}" + _TAIL,
        ),
        whole_words=True,
    ),
    "superbpe": Pre((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "poro-chat bloom gpt3-finnish": Pre((r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    "viking": Pre((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    "chameleon": Pre(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "deepseek-llm": Pre(
        ("[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, r"\p{N}+")
    ),
    "deepseek-coder": Pre(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Pre(_DEEPSEEK3),
    "spark2_5": Pre((*_DEEPSEEK3[:2], _DEEPSEEK3[2].replace(r"+[\r\n]*|\s*[\r\n]+", r"+|[\r\n]"), r"\p{N}")),
    "afmoe": Pre(
        (
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",  # groups of three from the right
            "[一-鿿㐀-䶿豈-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟ꩠ-ꩿꧠ-\ua9ff가-\ud7afᄀ-ᇿ]+",
            _DEEPSEEK3[2],
        )
    ),
    "gemma4 granite-embed-multi-311m": Pre((r"[^\n]+|\n+",), whole_words=True, needs_bos=True, raw=True),
    "sarvam-moe": Pre((r"[^\n]+|\n+",), raw=True),
}
PRE = {name: row for names, row in _ROWS.items() for name in names.split()}
FALLBACK = "gpt-2"


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
