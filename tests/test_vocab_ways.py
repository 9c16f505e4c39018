"""Different ways to the same ids: our own quick ones against the libraries, the plain definition, and the whole text.

Random texts of many scripts, runs of spaces and digits, controls and special tokens decide (tests/vocab_texts.py).
"""

import gzip
import json
import lzma
import os
import random
import re
import struct
import time
from itertools import chain, pairwise
from pathlib import Path

import pytest
from gguf_writer import write
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from vocab_texts import random_text

from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.text.vocab import merge as vocab_merge
from ikpy_llm.text.vocab import words as vocab_words
from ikpy_llm.text.vocab.bpe import _SYMBOLS
from ikpy_llm.text.vocab.merge import merge, merge_letters
from ikpy_llm.text.vocab.pre import _ROWS
from ikpy_llm.text.vocab.ugm import UgmEncoder
from ikpy_llm.text.vocab.vocab import load_vocab
from ikpy_llm.text.vocab.words import Words
from ikpy_llm.text.vocab.wpm import WpmEncoder

DATA = Path(__file__).parent / "data"
S = "\u2581"


def texts_of(seed: int, n: int, more=()) -> list[str]:
    rng = random.Random(seed)
    return [random_text(rng, rng.choice((1, 3, 10, 40)), list(more)) for _ in range(n)]


# --- words ---

TEXTS = [*texts_of(1, 60), "".join(map(chr, range(128)))]
TEXTS += [re.sub("[^\0-\x7f]", "", text) for text in texts_of(2, 60)]


@pytest.mark.parametrize("name", vocab_words._ASCII)
def test_classes_are_those_of_the_library(name):
    words = Words((name + "+", "[^x]") if name != "\\s" else (name + "+", "\\S"))
    everything = "".join(chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000)
    for text in (everything, "".join(map(chr, range(128)))):
        assert words.cut(text) == [word for word, _ in words.library.pre_tokenize_str(text)]


@pytest.mark.parametrize("names", _ROWS)
def test_words_are_those_of_the_library(names, monkeypatch):
    monkeypatch.setattr(vocab_words, "LONG", 0)
    words = Words(_ROWS[names].patterns)
    for text in TEXTS:
        assert words.cut(text) == ([word for word, _ in words.library.pre_tokenize_str(text)] if text else [])


def test_which_patterns_are_left_to_the_library():
    rows = {names.split()[0] for names, row in _ROWS.items() if not Words(row.patterns)._translatable}
    assert rows == {"bailingmoe", "tiny_aya", "kimi-k2", "superbpe"}


def test_ascii_needs_no_library():
    words = Words(_ROWS[next(names for names in _ROWS if "qwen2" in names)].patterns)
    assert words.cut("It's 12 o'clock\n") == ["It", "'s", " ", "1", "2", " o", "'clock", "\n"]
    assert "library" not in vars(words)
    words.cut("é")
    assert "library" in vars(words)


# --- merging ---


def naive_merge(symbols, ranks, joint):
    """The definition: merge the best pair, leftmost first, until there is none."""
    symbols = list(symbols)
    while True:
        pairs = [(ranks.get(a + joint + b), i) for i, (a, b) in enumerate(pairwise(symbols))]
        pairs = [pair for pair in pairs if pair[0] is not None]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@pytest.mark.parametrize("joint", [b"", b" "], ids=["scores", "merges"])
def test_merging_in_parts_is_merging_the_whole(joint, monkeypatch):
    monkeypatch.setattr(vocab_merge, "AT_ONCE", 5)
    rng, redone = random.Random(3), 0
    for _ in range(1500):
        letters = rng.choice(("ab", "abc", "aé漢"))
        pieces = ["".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(rng.randint(3, 12))]
        if joint:
            ranks = {(a + " " + b).encode(): rng.randint(0, 9) for a in pieces for b in pieces if rng.random() < 0.5}
        else:
            ranks = {piece.encode(): rng.randint(0, 5) for piece in pieces}
        text = rng.choice(("".join(rng.choices(letters, k=rng.randint(0, 40))), "a" * 30, "ab" * 15))
        symbols = [letter.encode() for letter in text]
        whole = naive_merge(symbols, ranks, joint)
        assert merge_letters(text, ranks, joint) == whole
        assert merge(list(symbols), ranks, joint) == whole
        parts = [naive_merge(symbols[i : i + 5], ranks, joint) for i in range(0, len(symbols), 5)]
        redone += list(chain(*parts)) != whole
    assert redone > 300  # the borders of parts mattered


# --- BPE on bytes against the library's ---


def library_bpe(vocab) -> Tokenizer:
    """The BPE of the library `tokenizers` on the same merges."""
    merges = [tuple(merge.decode().split(" ")) for merge in vocab._get("merges", list, None).raw]
    ids = {text.decode(): i for text, i in vocab._ids.items()}
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=vocab._pre.whole_words))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in vocab._pre.patterns]
    byte_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_letters])
    return tokenizer


def assert_same_as_library(vocab, seed: int, n: int):
    library = library_bpe(vocab)
    lacking = {byte for byte in range(256) if _SYMBOLS[byte] not in vocab._ids}  # the library merges across those
    special = [text for rows in vocab._special.values() for _, text, *_ in rows][:40]
    n_compared = 0
    for text in texts_of(seed, n, special):
        if not lacking.intersection(text.encode()):
            ids = []
            for part in vocab._parts(text, True):
                ids += [part] if isinstance(part, int) else library.encode(part, add_special_tokens=False).ids
            assert vocab.encode(text, add_special=False, parse_special=True) == ids, ascii(text)
            n_compared += 1
    assert n_compared > n // 3


def test_smollm2_against_the_library(tmp_path):
    path = tmp_path / "smollm2.gguf"
    path.write_bytes(lzma.decompress((DATA / "vocab_smollm2.gguf.xz").read_bytes()))
    assert_same_as_library(load_vocab(open_gguf(path).meta, path), 4, 800)


def tiny_vocabularies():
    with lzma.open(DATA / "vocab_cases.json.xz", "rt", encoding="utf-8") as file:
        return json.load(file)["tiny"]


@pytest.mark.parametrize("name", tiny_vocabularies())
def test_tiny_vocabularies_long_and_in_parts(name, tmp_path):
    """Words on their own give the ids of the whole text merged at once (llama), or the library's (gpt2)."""
    path = write(tmp_path / "v.gguf", tiny_vocabularies()[name]["meta"], {})
    vocab = load_vocab(open_gguf(path).meta, path)
    if vocab._pre:
        assert_same_as_library(vocab, 5, 300)
        return
    encoder = vocab.encode("") and vocab._encoder
    for text in texts_of(6, 300):
        assert encoder.encode(text) == encoder._encode_word(text.replace(" ", S)), ascii(text)


GOLDEN = Path(os.environ.get("IKPY_GOLDEN", "golden")) / "vocab"
GOLDEN_FILES = sorted(GOLDEN.glob("*.gguf.gz"))


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(not GOLDEN_FILES, reason="IKPY_GOLDEN does not name the folder of the reference data")
@pytest.mark.parametrize("file", GOLDEN_FILES or [None], ids=lambda file: file and file.name.split(".")[0])
def test_golden_vocabularies_against_the_library(file, tmp_path, monkeypatch):
    path = tmp_path / "v.gguf"
    path.write_bytes(gzip.decompress(file.read_bytes()))
    vocab = load_vocab(open_gguf(path).meta, path)
    monkeypatch.setattr(vocab_words, "LONG", 200)
    if vocab.kind == "gpt2":
        assert_same_as_library(vocab, 7, 600)
        return
    encoder = vocab.encode("x") and vocab._encoder
    for text in texts_of(8, 400):
        if vocab.kind == "bert":
            assert encoder.encode(text) == encoder._tokenizer.encode(text, add_special_tokens=False).ids, ascii(text)
        else:
            assert encoder.encode(text) == encoder._encode_word(text.replace(" ", S)), ascii(text)


# --- the other kinds ---


def test_word_pieces_of_words_are_those_of_the_text():
    letters = sorted({letter for text in texts_of(9, 100) for letter in text.lower() if letter > " "})
    raw = [f"{S}{x}".encode() for x in letters[::2]] + [x.encode() for x in letters] + [b"[UNK]"]
    for lowercase, strip in ((True, True), (True, False), (False, False)):
        encoder = WpmEncoder(raw, len(raw) - 1, lowercase, strip)
        normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip)
        assert encoder._tokenizer.normalizer.normalize_str("É") == normalizer.normalize_str("É")
        for text in texts_of(10, 300):
            assert encoder.encode(text) == encoder._tokenizer.encode(text, add_special_tokens=False).ids, ascii(text)


def unigram(rng):
    """(pieces, scores) of few distinct sums, so that ties abound."""
    names = {"".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(rng.randint(3, 15))}
    names |= {S} if rng.random() < 0.8 else set()
    names |= {S + name for name in list(names)[:4]}
    return sorted(names), [rng.choice((-1.0, -1.5, -2.0, -2.5, -3.125, -0.6875)) for _ in sorted(names)]


@pytest.mark.parametrize("at_once", [2048, 6])
def test_unigram_ties_are_decided_as_in_the_library_of_the_models(at_once, monkeypatch):
    """`tokenizers` (what models are trained with) and llama.cpp: of equal sums the one whose last piece is longest."""
    monkeypatch.setattr("ikpy_llm.text.vocab.ugm.AT_ONCE", at_once)
    rng = random.Random(11)
    for _ in range(300):
        names, scores = unigram(rng)
        reference = models.Unigram([("<unk>", 0.0), *zip(names, scores, strict=True)], 0, False)
        raw, types = [b"<unk>", *(name.encode() for name in names)], [2, *[1] * len(names)]
        encoder = UgmEncoder(raw, [0.0, *scores], types, 0, b"", False, False, "x")
        for _ in range(10):
            text = "".join(rng.choices("abc dx", k=rng.randint(1, 30)))
            assert encoder.encode(text) == [token.id for token in reference.tokenize(text.replace(" ", S))], text


@pytest.mark.parametrize(("one", "two"), [(-6.583, -3.53), (-4.973, -4.697), (-5.91, -6.732)])
def test_rounding_errors_decide_nothing(one, two):
    """All ways of 8 pairs and one letter have one sum; in 32 bits they have not, and sentencepiece takes others."""
    one, two = (struct.unpack("<f", struct.pack("<f", score))[0] for score in (one, two))
    encoder = UgmEncoder([b"<unk>", b"l", b"ll"], [0.0, one, two], [2, 1, 1], 0, b"", False, False, "x")
    assert encoder.encode("l" * 17) == [1] + [2] * 8


@pytest.mark.parametrize("text", ["a" * 200_000, "ab" * 100_000, "漢字" * 50_000, " " * 200_000, "x\n" * 50_000])
def test_long_texts_of_one_word_take_no_quadratic_time(text, tmp_path):
    names = ["<unk>", "<s>", "</s>", "a", "b", "ab", "aa", "aaaa", S, S + S, S + "a", "x", "\n", "漢", "字", "漢字"]
    scores = [0.0, 0.0, 0.0, *(-float(i) for i in range(3, len(names)))]
    types = [2, 3, 3] + [1] * (len(names) - 3)
    for model, more in (
        ("llama", {"scores": scores}),
        ("t5", {"scores": scores, "unknown_token_id": 0}),
        ("bert", {"unknown_token_id": 0}),
        ("gemma4", {"merges": ["a b", "a a", "aa aa", f"{S} {S}", f"{S} a", "漢 字"]}),
    ):
        meta = {"model": model, "tokens": names, "token_type": types, **more}
        path = write(tmp_path / "v.gguf", {f"tokenizer.ggml.{key}": value for key, value in meta.items()}, {})
        vocab = load_vocab(open_gguf(path).meta, path)
        start = time.process_time()
        ids = vocab.encode(text)
        assert time.process_time() - start < 10, model
        if model != "bert":
            assert "".join(names[i] for i in ids if types[i] == 1).replace(S, " ").strip() == text.strip()
