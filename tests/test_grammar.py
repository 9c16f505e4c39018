"""Grammars and JSON schemas: whatever the logits, the text follows them; mistakes are one line."""

import json
import lzma
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from ikpy_llm.engine import grammar
from ikpy_llm.engine.gguf import open_gguf
from ikpy_llm.engine.sampling import Sampler, SamplerOptions
from ikpy_llm.engine.vocab import load_vocab
from ikpy_llm.errors import IkpyError

DATA = Path(__file__).parent / "data"
RNG = np.random.default_rng(2)
GBNF = 'root ::= ("yes" | "no") " " [0-9]{2}\n'
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    pytest.importorskip("llguidance")
    path = tmp_path_factory.mktemp("vocab") / "v.gguf"
    path.write_bytes(lzma.decompress((DATA / "vocab_smollm2.gguf.xz").read_bytes()))
    return load_vocab(open_gguf(path).meta, path)


class Toy:
    """Six tokens; the last ends a text."""

    n_tokens, bos, eog = 6, None, frozenset({5})
    pieces = (b"a", b"b", b"ab", b"c", b" ", b"<end>")

    def token_bytes(self, token, skip_special=True):
        return b"" if token == 5 and skip_special else self.pieces[token]

    def encode(self, text, add_special=True):
        """Longest first: what a grammar forces comes in the model's own tokens."""
        return [self.pieces.index(x.encode()) for x in re.findall("ab|.", text)]


def written(vocab, g, n=200, logits=None):
    """The text that comes from random logits."""
    options = SamplerOptions(top_k=0, top_p=1.0, min_p=0.0, temp=2.0, seed=int(RNG.integers(1000)))
    sampler, out = Sampler(options, g.n_vocab, vocab, grammar=g), []
    while not g.finished and len(out) < n:
        token = sampler.sample(RNG.normal(0, 1, g.n_vocab).astype(np.float32))
        if token in vocab.eog:
            break
        out.append(token)
    return b"".join(vocab.token_bytes(t) for t in out).decode()


def test_toy_vocabulary():
    pytest.importorskip("llguidance")
    toy = Toy()
    g = grammar.Grammar(toy, 'root ::= "ab" "c"*\n', "gbnf", 8)
    assert g.mask().tolist() == [False, False, True] + [False] * 5
    g.accept(2)
    assert g.mask().tolist() == [False, False, False, True, False, True, False, False]
    assert not g.finished
    g.accept(5)
    assert g.finished
    for _ in range(20):
        assert re.fullmatch("abc*", written(toy, grammar.Grammar(toy, 'root ::= "ab" "c"*\n', "gbnf")))


def test_gbnf(vocab):
    for _ in range(10):
        assert re.fullmatch(r"(yes|no) \d\d", written(vocab, grammar.Grammar(vocab, GBNF, "gbnf")))


def test_json_schema(vocab):
    for _ in range(5):
        found = json.loads(written(vocab, grammar.Grammar(vocab, json.dumps(SCHEMA), "json")))
        assert set(found) == {"name", "n"} and 1 <= found["n"] <= 99 and len(found["name"]) <= 8


@pytest.mark.parametrize(
    ("kind", "source", "part"),
    [
        ("gbnf", "root ::= (", "Expected"),
        ("gbnf", "root ::= nowhere", "nowhere"),
        ("json", "[", "not JSON"),
        ("json", "3", "an object is accepted"),
        ("json", '{"type": "bogus"}', "bogus"),
    ],
)
def test_mistakes(vocab, kind, source, part):
    with pytest.raises(IkpyError, match=part) as caught:
        grammar.Grammar(vocab, source, kind)
    assert "\n" not in str(caught.value)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(IkpyError, match="pip install llguidance"):
        grammar.Grammar(Toy(), GBNF, "gbnf")
