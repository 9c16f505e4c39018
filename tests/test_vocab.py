"""Vocabularies against ids that the reference programs gave, and against what a damaged file may hold.

tests/data/vocab_smollm2.gguf.xz is SmolLM2's vocabulary (Apache-2.0). vocab_cases.json.xz has the reference's ids for
it, four tiny vocabularies with theirs, and words per pre-tokenizer whose ids agreed with the reference's on its files.
"""

import gzip
import json
import lzma
import os
import time
from pathlib import Path

import pytest
from gguf_writer import U, write
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.errors import IkpyError, ModelFileError
from ikpy_llm.text.vocab.bpe import _SYMBOLS, BpeEncoder
from ikpy_llm.text.vocab.pre import PRE
from ikpy_llm.text.vocab.vocab import load_vocab

DATA = Path(__file__).parent / "data"
with lzma.open(DATA / "vocab_cases.json.xz", "rt", encoding="utf-8") as _file:
    CASES = json.load(_file)
ALPHABET = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "smollm2.gguf"
    path.write_bytes(lzma.decompress((DATA / "vocab_smollm2.gguf.xz").read_bytes()))
    return load_vocab(open_gguf(path).meta, path)


@pytest.fixture(scope="module", params=list(CASES["tiny"]))
def tiny(request, tmp_path_factory):
    """(vocabulary, cases) of a tiny model, through a file."""
    entry = CASES["tiny"][request.param]
    path = write(tmp_path_factory.mktemp("vocab") / "tiny.gguf", entry["meta"], {})
    return load_vocab(open_gguf(path).meta, path), entry["cases"]


def test_smollm2_ids_and_texts(smollm2):
    for case in CASES["smollm2"]:
        text = case["text"]
        assert smollm2.encode(text, add_special=False) == case["ids_plain"], text
        ids = case["ids_special_added_parsed"]
        assert smollm2.encode(text, parse_special=True) == ids, text
        assert smollm2.decode(ids) == case["detok_special_added_parsed"]
        assert smollm2.decode(ids, skip_special=False) == case["pieces_special_added_parsed"]


def test_smollm2_properties(smollm2):
    assert (smollm2.n_tokens, smollm2.bos, smollm2.eos, smollm2.eot, smollm2.add_bos) == (49152, 1, 2, 2, False)
    assert smollm2.eog == {0, 2, 4} and smollm2.pieces[0] == "<|endoftext|>"
    assert smollm2.token_bytes(2) == b"" and smollm2.token_bytes(2, skip_special=False) == b"<|im_end|>"
    for wrong in (-1, 49152):
        with pytest.raises(IkpyError, match="49152"):
            smollm2.token_bytes(wrong)


def test_special_tokens_are_text_unless_parsed(smollm2):
    text = "<|im_start|>user<|im_end|>"
    assert smollm2.encode(text, parse_special=True) == [1, *smollm2.encode("user"), 2]
    assert not {1, 2} & set(smollm2.encode(text))


def test_tiny_vocabularies(tiny):
    vocab, cases = tiny
    for text, ids in cases:
        assert vocab.encode(text) == ids
        assert vocab.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_decode_gives_back_the_text(smollm2, text):
    assume(all(_SYMBOLS[byte] in smollm2._ids for byte in text.encode()))  # it lacks some control characters
    ids = smollm2.encode(text, add_special=False)
    assert smollm2.decode(ids) == text
    decoder = smollm2.decoder()
    assert "".join(decoder.feed(i) for i in ids) + decoder.flush() == text


def test_decode_gives_back_the_text_in_tiny_vocabularies(tiny):
    vocab, _ = tiny
    for text in (
        "a",
        " a",
        "  two  spaces ",
        "Ünï 漢字 👍🏽",
        "line\n\n\tend\n",
        "x" * 300,
        "\r\n \u3000\xa0",
        "1234567",
    ):
        assert vocab.decode(vocab.encode(text, add_special=False)) == text


def test_stream_waits_for_whole_characters(smollm2):
    ids = smollm2.encode("👍é")
    decoder = smollm2.decoder()
    pieces = [decoder.feed(i) for i in ids]
    assert "".join(pieces) == "👍é" and "\ufffd" not in "".join(pieces) and "" in pieces
    decoder = smollm2.decoder()
    assert decoder.feed(ids[0]) == "" and decoder.flush() == "\ufffd"


def test_lone_surrogates_become_replacement_characters(smollm2):
    assert smollm2.encode("a\udcffb") == smollm2.encode("a\ufffdb")


def test_long_words_take_no_quadratic_time(smollm2):
    start = time.process_time()
    assert smollm2.decode(smollm2.encode("ab" * 30_000 + " " * 10_000)).startswith("abab")
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", CASES["words"]["pre"])
def test_words_are_those_of_the_reference(name):
    encoder = BpeEncoder(PRE[name], {}, [], "x")
    for text, words in zip(CASES["words"]["texts"], CASES["words"]["pre"][name], strict=True):
        assert encoder._words.cut(text) == words


# --- small vocabularies of our own ---------------------------------------------------------------------------------


def vocab_of(tmp_path, **changed):
    """A gpt2 vocabulary of the letters a-z, "ab", a control and a user-defined token, with keys replaced or removed."""
    tokens = [*ALPHABET, "ab", "<|end|>", "  "]
    meta = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["a b"]}
    meta["token_type"] = [*[U(5, 1).value] * 27, 3, 4]
    meta |= {"eos_token_id": 27} | changed
    meta = {f"tokenizer.ggml.{key}": value for key, value in meta.items() if value is not None}
    path = write(tmp_path / "v.gguf", meta, {})
    return load_vocab(open_gguf(path).meta, path)


def test_small_vocabulary(tmp_path):
    vocab = vocab_of(tmp_path, bos_token_id=0, add_bos_token=True, add_eos_token=True)
    assert vocab.encode("cab") == [0, 2, 26, 27] and vocab.encode("cab", add_special=False) == [2, 26]
    assert vocab.encode("", add_special=False) == [] and vocab.encode("") == [0, 27]
    assert vocab.encode("ab  ab<|end|>c", False, True) == [26, 28, 26, 27, 2]
    assert vocab.encode("a!b", False) == [0, 1]  # what no token covers is dropped, as in the reference
    assert vocab.decode([26, 28, 27, 2]) == "ab  c" and vocab.decode([27], skip_special=False) == "<|end|>"
    assert vocab.eog == {27}


def test_unknown_pre_tokenizer_warns(tmp_path, caplog):
    vocab = vocab_of(tmp_path, pre="brand-new")
    assert "brand-new" in caplog.text and "gpt-2" in caplog.text
    assert vocab.encode("ab") == [26]


BAD = {
    "tokens are numbers": ({"tokens": [1, 2]}, "tokens"),
    "too few types": ({"token_type": [1, 3]}, "token_type"),
    "types are text": ({"token_type": ["x"] * 29}, "token_type"),
    "types are floats": ({"token_type": [1.0] * 29}, "token_type"),
    "eot is text": ({"eot_token_id": "27"}, "eot_token_id"),
    "eos is a truth value": ({"eos_token_id": True}, "eos_token_id"),
    "model is a number": ({"model": 3}, "model"),
    "add_bos is a number": ({"add_bos_token": 1}, "add_bos_token"),
    "merge without a space": ({"merges": ["ab"]}, "merge 0"),
    "merge with an empty part": ({"merges": ["a b", "a "]}, "merge 1"),
    "merges are numbers": ({"merges": [1]}, "merges"),
    "no merges": ({"merges": None}, "merges"),
    "no scores": ({"model": "llama"}, "scores"),
    "too few scores": ({"model": "llama", "scores": [0.0]}, "scores"),
    "a score is no number": ({"model": "llama", "scores": [0.0] * 28 + [float("nan")]}, "nan for token 28"),
    "a score of t5 has no end": (
        {"model": "t5", "scores": [0.0, float("-inf"), *[0.0] * 27], "unknown_token_id": 0},
        "-inf for token 1",
    ),
    "no merges at all": ({"merges": None}, "'tokenizer.ggml.merges' is missing; a list of strings is expected"),
    "forbidden tokens are text": ({"suppress_tokens": ["a"]}, "suppress_tokens"),
    "forbidden tokens are one number": ({"suppress_tokens": 3}, "suppress_tokens"),
    "infilling is text": ({"fim_pad_token_id": "x"}, "fim_pad_token_id"),
    "scores are integers": ({"model": "llama", "scores": [1] * 29}, "scores"),
    "bert without an unknown token": ({"model": "bert"}, "unknown_token_id"),
    "t5 without scores": ({"model": "t5"}, "scores"),
    "t5 with a broken normalization": (
        {"model": "t5", "scores": [0.0] * 29, "precompiled_charsmap": [1, 2, 3]},
        "sentencepiece refuses",
    ),
    "t5 with a normalization of texts": (
        {"model": "t5", "scores": [0.0] * 29, "precompiled_charsmap": ["x"]},
        "precompiled_charsmap",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_refused(tmp_path, case):
    changed, word = BAD[case]
    with pytest.raises(ModelFileError, match=word) as caught:
        vocab_of(tmp_path, **changed).encode("ab")
    assert "\n" not in str(caught.value)


def test_scores_without_end_rank_last_in_llama(tmp_path):
    scores = {"scores": [*[-1.0] * 26, float("-inf"), 0.0, 0.0]}
    vocab = vocab_of(tmp_path, model="llama", add_space_prefix=False, add_bos_token=False, **scores)
    assert vocab.encode("ab") == [26]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokens": [*ALPHABET, "c", "<|end|>", "  "]}, "tokens 2 and 26 are both 'c'"),
        ({"token_type": [1] * 28 + [99]}, "token_type' is 99 for token 28"),
        ({"token_type": [-5] * 29}, "token_type' is -5 for token 0"),
        ({"tokens": [*ALPHABET, "", "", ""]}, ""),
    ],
)
def test_oddities_are_told_in_one_line(tmp_path, caplog, changed, words):
    vocab = vocab_of(tmp_path, **changed)
    assert [words in record.getMessage() for record in caplog.records] == ([True] if words else [])
    vocab.encode("abc  <|end|>", parse_special=True)
    assert vocab.decode([28]) == ("" if words and "28" in words else vocab.decode([28]))


WRONG = [None, 0, -1, 2**32 - 1, True, 1.5, "", "x", b"\xff", [], [1], ["a"], [b"\xff"], [1.5], [True], [99] * 29]
WRONG += [["a"] * 29, [""] * 29, [b"\xff"] * 29, [1.0] * 29, [float("nan")] * 29, [float("inf")] * 29, [-5] * 29]
WRONG += [["a b", "x yz"], ["a  b"], ["\n \n"], [b"\xff a"], [3] * 7, [255] * 40]
KEYS = """model pre tokens token_type merges scores unknown_token_id bos_token_id eos_token_id eot_token_id cls_token_id
seperator_token_id fim_rep_token_id add_bos_token add_eos_token add_space_prefix remove_extra_whitespaces
precompiled_charsmap suppress_tokens normalizer.lowercase normalizer.strip_accents"""


@pytest.mark.parametrize("key", KEYS.split())
@pytest.mark.parametrize("kind", ["gpt2", "gemma4", "llama", "t5", "bert"])
def test_wrong_values_are_one_line_or_harmless(tmp_path, kind, key):
    """Whatever a key holds, a vocabulary works or says in one line why it does not."""
    base = {"model": kind, "scores": [-1.0 * i for i in range(29)], "unknown_token_id": 0, "bos_token_id": 1}
    for value in WRONG:
        try:
            vocab = vocab_of(tmp_path, **base | {key: value})
            for text in ("", "ab  abx", "é\0\ud800\n\n", "<|end|> a"):
                for parse_special in (True, False):
                    ids = vocab.encode(text, parse_special=parse_special)
                    assert all(0 <= i < vocab.n_tokens for i in ids)
                    vocab.decode(ids)
            for i in range(vocab.n_tokens):
                vocab.token_bytes(i, skip_special=False)
        except IkpyError as error:
            assert "\n" not in str(error) and "v.gguf" in str(error) and len(str(error)) < 400


@pytest.mark.parametrize("changed", [{"model": "rwkv"}, {"model": None}, {"tokens": None, "token_type": None}])
def test_models_without_a_known_vocabulary_load(tmp_path, changed):
    vocab = vocab_of(tmp_path, **changed)
    with pytest.raises(IkpyError, match="cannot be turned into tokens"):
        vocab.encode("ab")


# --- the whole reference data, where it is at hand -----------------------------------------------------------------

GOLDEN = Path(os.environ.get("IKPY_GOLDEN", "golden")) / "vocab"
GOLDEN_NAMES = sorted(
    name
    for name in (path.name.removeprefix("ggml-vocab-").removesuffix(".gguf.gz") for path in GOLDEN.glob("*.gguf.gz"))
    if (GOLDEN / f"tok_{name}.json.gz").exists() or (GOLDEN / f"ggml-vocab-{name}.gguf.out").exists()
)


@pytest.mark.model
@pytest.mark.skipif(not GOLDEN_NAMES, reason="IKPY_GOLDEN does not name the folder of the reference data")
@pytest.mark.parametrize("name", GOLDEN_NAMES or [""])
def test_reference_vocabularies(tmp_path, name):
    path = tmp_path / "v.gguf"
    path.write_bytes(gzip.decompress((GOLDEN / f"ggml-vocab-{name}.gguf.gz").read_bytes()))
    vocab = load_vocab(open_gguf(path).meta, path)
    cases = GOLDEN / f"tok_{name}.json.gz"
    for case in json.loads(gzip.decompress(cases.read_bytes())) if cases.exists() else ():
        assert vocab.encode(case["text"], add_special=False) == case["ids_plain"]
        assert vocab.encode(case["text"], parse_special=True) == case["ids_special_added_parsed"]
    if (GOLDEN / f"ggml-vocab-{name}.gguf.inp").exists():
        texts = (GOLDEN / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
        lines = (GOLDEN / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
        for text, line in zip(texts, lines, strict=False):
            assert vocab.encode(text, add_special=False) == [int(word) for word in line.split()]
