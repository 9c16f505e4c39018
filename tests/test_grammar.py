"""Grammars and JSON schemas: whatever the logits, the text follows them; mistakes are one line."""

import datetime
import json
import logging
import lzma
import re
import sys
import types
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.errors import IkpyError
from ikpy_llm.sampling.sampler import Sampler, SamplerOptions
from ikpy_llm.text.grammar import grammar, json_schema
from ikpy_llm.text.vocab.vocab import load_vocab

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
        ("gbnf", "root ::= (", "line 1: expected"),
        ("gbnf", "root ::= nowhere", "nowhere"),
        ("json", "[", "not JSON"),
        ("json", "3", "an object is accepted"),
        ("json", '{"type": "bogus"}', "bogus"),
        ("json", "false", "false, which no text follows"),
        ("json", "[" * 5000, "not JSON"),
        ("json", json.dumps({"$ref": "https://example.com/x.json"}), "example.com"),
        ("json", json.dumps({"properties": {f"p{i}": {} for i in range(2001)}}), "2001 properties; up to 2000"),
        ("json", json.dumps({"anyOf": [{"$ref": f"#/$defs/p{i + 1}"} for i in range(3000)]}), "1000 different"),
        ("json", json.dumps({"description": "x" * 1_000_000}), "up to 1000000 are accepted"),
        ("gbnf", "root ::= <[999999]>", "999999"),
        ("gbnf", "root ::= <nonsense>", "'<nonsense>' is not one token"),
        ("gbnf", "%llguidance {}\nstart: T0\n" + "".join(f"T{i}: /a/ T{i + 1}\n" for i in range(5000)) + "T5000: /b/",
            "up to 2000 are accepted"),
        ("gbnf", "%llguidance {}\nstart: " + " | ".join(f'"{i}"' for i in range(30_000)), "29999 alternatives"),
    ],
    ids=range(15),
)  # fmt: skip
def test_mistakes(vocab, kind, source, part):
    with pytest.raises(IkpyError, match=part) as caught:
        grammar.Grammar(vocab, source, kind)
    assert "\n" not in str(caught.value)


PLACES = [
    *({}, {"$id": "http://x/y"}, {"definitions": {"a": None}}, {"$defs": {"a": None}, "$ref": "#/$defs/a"}),
    *({"items": None}, {"prefixItems": [None]}, {"anyOf": [{"type": "null"}, {"items": None}]}, {"allOf": [None]}),
    *({"if": None}, {"if": {"type": "null"}, "then": None, "else": None}, {"not": None}, {"contains": None}),
    *({"contentSchema": None}, {"properties": {"a": None}}, {"dependentSchemas": {"a": None}}, {"propertyNames": None}),
]


@pytest.mark.parametrize("key", ["$ref", "$dynamicRef", "$recursiveRef"])
@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
def test_references_to_addresses_are_refused(vocab, key, place):
    """Wherever they stand, also in what is not enforced."""

    def filled(value, inner):
        if value is None:
            return inner
        if isinstance(value, dict):
            return {name: filled(v, inner) for name, v in value.items()}
        return [filled(v, inner) for v in value] if isinstance(value, list) else value

    for address in ("http://y.example/", "file:///etc/passwd", "//y.example/a", "urn:x:y", 3):
        schema = filled(place, {key: address}) if None in _values(place) else place | {key: address}
        with pytest.raises(IkpyError, match="the JSON schema ") as caught:
            grammar.Grammar(vocab, json.dumps(schema), "json")
        assert "\n" not in str(caught.value)


def _values(value) -> list:
    """What stands in dictionaries and lists, at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if not isinstance(value, dict | list) else [v for item in inner for v in _values(item)]


def test_references_within_a_schema_are_followed(vocab):
    for schema in (
        {"$ref": "#n", "$defs": {"n": {"$anchor": "n", "type": "null"}}},
        {"$id": "http://x/y", "$ref": "z", "$defs": {"n": {"$id": "z", "type": "null"}}},
        {"$id": "http://x/y", "$ref": "http://x/y#/$defs/n", "$defs": {"n": {"type": "null"}}},
    ):
        g = grammar.Grammar(vocab, json.dumps(schema), "json")
        assert g.mask()[vocab.encode("null", add_special=False)[0]]
        assert not g.mask()[vocab.encode("1", add_special=False)[0]]


def test_deep_grammars_end(vocab):
    """Rules that stand deep in each other, which llguidance reads by recursion."""
    chain = "".join(f"r{i} ::= [a] r{i + 1}\n" for i in range(290)) + "r290 ::= [b]"
    circle = "".join(f'r{i} ::= (([a] ("x" r{i + 1} "e")*) | [c] r0)*\n' for i in range(990)) + 'r990 ::= "b"'
    for rules in (chain, circle):
        assert grammar.Grammar(vocab, f"root ::= r0\n{rules}\n", "gbnf").mask().any()
    refs = {f"p{i}": {"type": "array", "items": {"$ref": f"#/$defs/p{i + 1}"}} for i in range(990)}
    schema = {"$ref": "#/$defs/p0", "$defs": refs | {"p990": {"type": "null"}}}
    assert grammar.Grammar(vocab, json.dumps(schema), "json").mask().any()


def test_tokens_in_a_grammar(vocab):
    start, end = vocab.encode("<|im_start|><|im_end|>", add_special=False, parse_special=True)
    for name, other in ((f"<[{start}]>", f"!<[{end}]>"), ("<|im_start|>", "!<|im_end|>")):
        g = grammar.Grammar(vocab, f'root ::= {name} {other} "x"', "gbnf")
        assert g.mask().nonzero()[0].tolist() == [start]
        g.accept(start)
        mask = g.mask()
        assert not mask[end] and mask[start] and mask.sum() == vocab.n_tokens - 1
        g.accept(vocab.encode(" a", add_special=False)[0])
        assert vocab.encode("x", add_special=False)[0] in g.mask().nonzero()[0]


RELAXED = [
    ({"type": "string", "format": "path"}, "format path", '"a/b"'),
    ({"type": "string", "format": "password", "writeOnly": True}, "format password", '"x"'),
    ({"type": "object", "properties": {"a": {"type": "string", "format": "binary"}}, "required": ["a"]},
        "format binary", '{"a":"x"}'),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2}, "uniqueItems", "[1,1]"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames", '{"b":1}'),
    ({"type": "array", "contains": {"type": "integer"}, "minContains": 2}, "contains, minContains", "[]"),
    ({"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "$defs": {"A": {"type": "integer"}, "B": {"type": "null"}}}, "oneOf (taken as anyOf)", "null"),
    ({"type": "string", "pattern": "^(?!0)[0-9]+$"}, "pattern with look-around or back-references", '"01"'),
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b": {"type": "null"}},
        "additionalProperties": False}, "patternProperties", '{"ab":1}'),
    ({"type": "object", "patternProperties": {"^(?=a)": {"type": "integer"}}}, "patternProperties", '{"ab":null}'),
    ({"type": "object", "dependentRequired": {"a": ["b"]}, "not": {"const": {}}}, "dependentRequired, not", "{}"),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2, "required": ["a"]},
        "minProperties", '{"a":1,"b":2}'),
    ({"type": "string", "contentMediaType": "application/json", "contentSchema": {"type": "object"}},
        "contentMediaType, contentSchema", '"x"'),
    ({"type": "string", "contentEncoding": "base64"}, "contentEncoding", '"?"'),
    ({"type": "integer", "divisibleBy": 2, "disallow": "integer", "extends": {"minimum": 3}},
        "divisibleBy, disallow, extends", "1"),
    ({"$dynamicRef": "#a", "$defs": {"n": {"$dynamicAnchor": "a", "type": "null"}}}, "$dynamicRef", "1"),
    ({"$recursiveAnchor": True, "items": {"$recursiveRef": "#"}}, "$recursiveAnchor, $recursiveRef", "[1]"),
    ({"if": {"type": "string"}, "then": {"maxLength": 1}, "else": {"type": "null"}}, "else, if, then", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "name", "text"), RELAXED, ids=range(len(RELAXED)))
def test_what_cannot_be_enforced_is_named_once(vocab, caplog, schema, name, text):
    with caplog.at_level(logging.WARNING, "ikpy"):
        for _ in range(2):
            g = grammar.Grammar(vocab, json.dumps(schema), "json")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith(f"left out: {name}")
    for token in vocab.encode(text, add_special=False):
        assert g.mask()[token], text
        g.accept(token)
    assert g.finished or g.mask()[sorted(vocab.eog)].any()


ENFORCED = [
    (True, "12", None),
    ({}, "[]", None),
    ({"properties": {"a": True, "b": False}, "required": ["a"], "type": "object"}, '{"a":1}', '{"b'),
    ({"type": "array", "items": {"type": "null"}, "uniqueItems": False}, "[null,null]", "[1"),
    ({"type": "string", "maxLength": 2.0}, '"ab"', '"abc'),
    ({"properties": {"pattern": {"type": "null"}, "uniqueItems": {"type": "null"}}, "required": ["pattern"],
        "type": "object"}, '{"pattern":null}', '{"pattern":1'),
    ({"enum": [{"pattern": "(?=a)", "uniqueItems": False}]}, '{"pattern":"(?=a)","uniqueItems":false}', "1"),
    ({"type": "string", "pattern": r"^\(?a$"}, '"(a"', '"b'),
    ({"type": "string", "format": "date"}, '"2026-01-31"', '"x'),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), ENFORCED, ids=range(len(ENFORCED)))
def test_schemas_that_are_enforced_in_full(vocab, caplog, schema, good, bad):
    def accepts(text):
        g = grammar.Grammar(vocab, json_schema.as_text(schema), "json")
        for token in vocab.encode(text, add_special=False):
            if g.finished or not g.mask()[token]:
                return False
            g.accept(token)
        return True

    with caplog.at_level(logging.WARNING, "ikpy"):
        assert accepts(good) and not (bad and accepts(bad))
    assert not caplog.records


def test_classes_as_schemas():
    class Found:
        @classmethod
        def model_json_schema(cls):
            return SCHEMA

    class Adapter:
        def json_schema(self):
            return SCHEMA

    class Broken:
        @classmethod
        def model_json_schema(cls):
            raise ValueError("a field\nhas none")

    for schema in (Found, Found(), Adapter(), SCHEMA, types.MappingProxyType(SCHEMA), json.dumps(SCHEMA)):
        assert json.loads(json_schema.as_text(schema)) == SCHEMA
    assert json_schema.as_text(True) == "true"
    for wrong, part in (
        (3, "json_schema is 3"),
        (int, "model_json_schema is accepted"),
        ([SCHEMA], "json_schema is"),
        ({"const": {1, 2}}, "no JSON"),
        (Broken, "a field has none"),
    ):
        with pytest.raises(IkpyError, match=part) as caught:
            json_schema.as_text(wrong)
        assert "\n" not in str(caught.value)


def test_pydantic(vocab, caplog):
    pydantic = pytest.importorskip("pydantic")
    fields = {"path": (Path, ...), "secret": (pydantic.SecretStr, ...), "data": (bytes, ...), "price": (Decimal, ...)}
    fields |= {"names": (set[str], ...), "one": (int | None, None), "by_day": (dict[datetime.date, int], ...)}
    kind = pydantic.create_model("Everything", **fields)
    with caplog.at_level(logging.WARNING, "ikpy"):
        g = grammar.Grammar(vocab, json_schema.as_text(kind), "json")
    (record,) = caplog.records
    assert all(
        name in record.getMessage() for name in ("format path", "format password", "format binary", "uniqueItems")
    )
    text = '{"path":"a","secret":"b","data":"c","price":1.5,"names":["x"],"one":null,"by_day":{}}'
    for token in vocab.encode(text, add_special=False):
        assert g.mask()[token]
        g.accept(token)
    kind.model_validate_json(text)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(IkpyError, match="pip install llguidance"):
        grammar.Grammar(Toy(), GBNF, "gbnf")
