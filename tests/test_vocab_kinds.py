"""Vocabularies of other kinds than SPM and byte-level BPE: every pre-tokenizer's words, bert, t5, BPE on characters."""

import io
import struct

import pytest
import sentencepiece
from gguf_writer import write
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.text.vocab.pre import PRE, pre_type
from ikpy_llm.text.vocab.vocab import load_vocab
from ikpy_llm.text.vocab.words import Words
from ikpy_llm.text.vocab.wpm import cleaned

# --- words ---

CONTRACTED, JOINED = ["camelCase", "'s"], ["camel", "Case's"]
WORDS = {  # name: words of "camelCase's 12345 \n\nÄÖü  x", as the model's own tokenizer cuts them
    "phi-2": [*CONTRACTED, " 12345", " \n", "\n", "ÄÖü", " ", " x"],
    "command-r": [*CONTRACTED, " ", *"12345", " \n", "\n", "ÄÖü", " ", " x"],
    "smaug-bpe": [*CONTRACTED, " ", "123", "45", " \n\n", "ÄÖü", " ", " x"],
    "stablelm2": [*CONTRACTED, " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "qwen35": [*CONTRACTED, " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "ufakzeka": ["camelCase", "'s", " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "laguna": [*CONTRACTED, " ", *"12345", " ", "\n\n", "ÄÖü", " ", " x"],
    "minicpm5": [*CONTRACTED, " ", "123", "45", " \n\n", "ÄÖü", " ", " x"],
    "seed-coder": [*CONTRACTED, " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "jais-2": [*CONTRACTED, " ", "123", "45", " \n\n", "ÄÖü", " ", " x"],
    "bailingmoe": [*CONTRACTED, " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "exaone-moe": [*CONTRACTED, " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "tekken": ["camel", "Case", "'s", " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "gpt-4o": [*JOINED, " ", "123", "45", " \n\n", "ÄÖü", " ", " x"],
    "tiny_aya": [*JOINED, " ", "12", "345", " \n\n", "ÄÖü", " ", " x"],
    "kimi-k2": [*JOINED, " ", "123", "45", " \n\n", "ÄÖü", " ", " x"],
    "youtu": [*JOINED, " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "superbpe": ["camelCase's ", "12", "345", " \n\nÄÖü  x"],
    "bloom": ["camelCase's", " 12345", " \n\n", "ÄÖü", " ", " x"],
    "viking": ["camelCase's", " ", *"12345", " \n\n", "ÄÖü", " ", " x"],
    "chameleon": ["camelCase", "'", "s", " ", *"12345", " ", "\n", "\n", "ÄÖü", "  ", "x"],
    "hunyuan-dense": [*CONTRACTED, " ", "123", "45", " \n\n", "ÄÖü", " ", " x"],
    "spark2_5": [*CONTRACTED, " ", *"12345", " \n", "\n", "ÄÖü", " ", " x"],
    "afmoe": [*CONTRACTED, " ", "12", "345", " \n\n", "ÄÖü", " ", " x"],
    "gemma4": ["camelCase's 12345 ", "\n\n", "ÄÖü  x"],
}
MORE = {  # text and its words, where the text above shows no difference
    "qwen35": ("कि!", ["कि", "!"]),  # a vowel sign belongs to its letter
    "kimi-k2": ("漢字かな", ["漢字", "かな"]),
    "youtu": ("한국어漢字！！a", ["한국어", "漢字", "！！", "a"]),
    "exaone-moe": ("two words\nx", ["two words", "\n", "x"]),
    "chameleon": ("a  b!cIMGIMGABZ", ["a", "  ", "b", "!", "c", "IMGIMGABZ"]),
    "afmoe": ("1234567 漢字x", ["1", "234", "567", " ", "漢字", "x"]),
    "jais-2": ("a" + " " * 7 + "b", ["a", " " * 4, " " * 2, " b"]),
    "bloom": ("a.b, c", ["a", ".", "b", ",", " c"]),
}


def words(name, text):
    return Words(PRE[name].patterns).cut(text)


@pytest.mark.parametrize("name", WORDS)
def test_words(name):
    assert words(name, "camelCase's 12345 \n\nÄÖü  x") == WORDS[name]
    text, expected = MORE.get(name, ("", []))
    assert words(name, text) == expected


# What llama.cpp's loader knows (src/llama-vocab.cpp, 2026), but for "whitespace".
KNOWN = """default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano deepseek-llm
deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es
jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m sarvam-moe jina-v1-en jina-v2-code
roberta-bpe refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat glm4
chatglm-bpe viking jais tekken smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b
megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion granite-docling
bailingmoe bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna
minimax-m2 solar-open mellum2"""


@pytest.mark.parametrize("name", KNOWN.split())
def test_every_name_is_known_and_keeps_the_text(name, caplog):
    pre_type(name, "x")
    assert not caplog.text
    text = "It's  İstanbul's 1234567,\t漢字かな 한국어 x=3;...\r\n\n   👍🏽 a\u0301 ไทย"
    assert "".join(words(name, text)) == text


# --- vocabularies ---


def vocab_of(folder, model, tokens, types=None, **more):
    """Through a file; `more` are keys after tokenizer.ggml."""
    keys = {"model": model, "tokens": tokens, "token_type": types or [1] * len(tokens), **more}
    path = write(folder / f"{model}.gguf", {f"tokenizer.ggml.{k}": v for k, v in keys.items()}, {})
    return load_vocab(open_gguf(path).meta, path)


S = "\u2581"


def test_pieces_of_characters(tmp_path):
    """gemma4: BPE whose pieces are plain text, with bytes for the rest."""
    tokens = [*"abc", S, "ab", f"{S}ab", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256)), "<end>"]
    v = vocab_of(
        tmp_path, "gemma4", tokens, [1] * 7 + [6] * 256 + [3], merges=["a b", f"{S} ab"], eos_token_id=len(tokens) - 1
    )
    assert v.encode("ab ab\n\nc", add_special=False) == [4, 5, 6, 2]
    assert v.encode("é\n") == [7 + 0xC3, 7 + 0xA9, 7 + 10]
    for text in ("ab ab\n\nc", "é\n👍🏽  a"):
        assert v.decode(v.encode(text)) == text


@pytest.fixture(scope="module")
def bert(folder):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(S + x for x in ("the", "t", "na", ",", "'", "!", "漢", "[", "1"))]
    tokens += ["ive", "h", "e", "字", "s", "1", S + "cafe", "]"]
    more = {"cls_token_id": 2, "seperator_token_id": 3, "unknown_token_id": 1}
    return vocab_of(folder, "bert", tokens, [3, 2, 3, 3] + [1] * (len(tokens) - 4), **more), tokens


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The", ["▁the"]),
        ("THE,the!", ["▁the", "▁,", "▁the", "▁!"]),
        ("naïve Café", ["▁na", "ive", "▁cafe"]),
        ("thehe", ["▁the", "h", "e"]),
        ("th", ["▁t", "h"]),
        ("thx the", ["[UNK]", "▁the"]),  # what is partly unknown is unknown as a whole
        ("漢字", ["▁漢", "[UNK]"]),  # words of one letter each
        (" \t\n the\0the ", ["[UNK]"]),  # marks that do not show are dropped: one word
        ("[UNK]", ["▁[", "[UNK]", "[UNK]"]),
        ("", []),
        ("t" * 101, ["[UNK]"]),
        ("1" * 100, ["▁1", *["1"] * 99]),
    ],
)
def test_word_pieces(bert, text, pieces):
    vocab, tokens = bert
    ids = vocab.encode(text, add_special=False)
    assert [tokens[i] for i in ids] == pieces
    assert vocab.encode(text) == [2, *ids, 3]


def test_word_pieces_as_text(bert):
    vocab, _ = bert
    ids = vocab.encode("the[SEP]The , 't !", parse_special=True)
    assert ids.count(3) == 2 and vocab.decode(ids) == "the the,'t!"
    assert vocab.decode(ids, skip_special=False).startswith("[CLS] the[SEP] the")
    assert cleaned(" it ' s i 'm we 've don 't .") == "it's i'm we've don 't."
    assert vocab.eog == {0, 3} and (vocab.bos, vocab.add_bos) == (2, True)  # [PAD] ends texts of Kimi K2


def test_case_and_accents_may_count(folder):
    v = vocab_of(folder, "bert", [S + x for x in ("É", "é", "e", "E", "?")], unknown_token_id=4,
                 **{"normalizer.lowercase": False})  # fmt: skip
    assert v.encode("É é E e", add_special=False) == [0, 1, 3, 2]
    v = vocab_of(folder, "bert", [S + x for x in ("É", "é", "e", "E", "?")], unknown_token_id=4)
    assert v.encode("É é E e", add_special=False) == [2, 2, 2, 2]


def fields(data):
    """Number -> values of a protobuf message."""
    found, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        size = varint() if key & 7 == 2 else 4 if key & 7 == 5 else 0
        value = data[at : at + size] if size or key & 7 == 2 else varint()
        at += size
        found.setdefault(key >> 3, []).append(value)
    return found


TEXT = """In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness
was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And God said, Let there be light
and there was light. 12345 ½ ﬁne naïve Ünï"""


@pytest.fixture(scope="module", params=[(True, True), (True, False), (False, False)], ids=str)
def t5(request, folder):
    """(a model that sentencepiece has trained, our vocabulary from what a converter takes out of it)."""
    prefix, merge = request.param
    out = io.BytesIO()
    options = {"vocab_size": 90, "minloglevel": 2, "num_threads": 1, "hard_vocab_limit": False}
    options |= {"add_dummy_prefix": prefix, "remove_extra_whitespaces": merge}
    options |= {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "user_defined_symbols": ["<x>", "earth"]}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.split("\n") * 3), model_writer=out, **options)
    proto = fields(out.getvalue())
    pieces = [fields(piece) for piece in proto[1]]
    charsmap = fields(proto[3][0])[2][0]
    more = {
        "scores": [struct.unpack("<f", p[2][0])[0] for p in pieces],
        "precompiled_charsmap": gguf_writer_bytes(charsmap),
        "add_space_prefix": prefix,
        "remove_extra_whitespaces": merge,
    }
    types = [p.get(3, [1])[0] for p in pieces]
    v = vocab_of(folder, "t5", [p[1][0].decode() for p in pieces], types, **more)
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()), v


def gguf_writer_bytes(data):
    """As int8, which is what some converters write."""
    return [byte - 256 if byte > 127 else byte for byte in data]


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text("the art<x>\n ﬁ½Ü", max_size=60)))
def test_unigram_ids_are_those_of_the_trained_model(t5, text):
    reference, v = t5
    assume(not any(x in text for x in ("<x>", "earth")))  # those begin a new text, with a space before it
    plain = v.encode(text, add_special=False)
    assert plain == reference.encode(text)
    assert v.encode(text) == [*plain, 1]


def test_unigram_pieces_and_text(t5):
    reference, v = t5
    text = "And the earth was without form"
    before, after = reference.encode("And the "), reference.encode(" was without form")
    assert v.encode(text, add_special=False) == [*before, v.encode("earth", add_special=False)[0], *after]
    ids = v.encode("the waters")
    assert ids[-1] == v.eos == 1 and v.decode(ids) == "the waters"
    assert reference.unk_id() in v.encode("漢字") and v.encode("漢字").count(2) == 1
    assert v.eog == {1} and not v.add_bos


def test_the_likeliest_pieces_win(folder):
    """By the definition: of all ways to cut the text, the one of the highest sum of scores."""
    scores = {"a": -2.0, "b": -2.5, "ab": -3.0, "ba": -4.2, "aba": -5.1, "bb": -6.0, S: -1.0, f"{S}a": -3.5}
    tokens = ["<pad>", "</s>", "<unk>", *scores]
    types = [3, 3, 2, *[1] * len(scores)]
    v = vocab_of(folder, "t5", tokens, types, scores=[0.0, 0.0, 0.0, *scores.values()])

    def cuts(text):
        if not text:
            yield 0.0, []
        for n in range(1, len(text) + 1):
            if text[:n] in scores:
                yield from ((scores[text[:n]] + rest, [text[:n], *more]) for rest, more in cuts(text[n:]))

    for text in ("aba", "abab", "bbb", "abba", "a ab", "ba a", " b", "aabbaabb"):
        _, best = max(cuts(text.replace(" ", S)))
        assert [tokens[i] for i in v.encode(text, add_special=False)] == best
    assert v.encode("axyzb", add_special=False) == [3, 2, 4]  # what no piece covers is one unknown token
    twice = vocab_of(
        folder, "t5", [*tokens, "a", ""], [*types, 1, 1], scores=[0.0] * 3 + [*scores.values()] + [0.0] * 2
    )
    assert twice.encode("aba") == v.encode("aba")  # equal and empty pieces are not found
