"""Text that must follow a grammar (GBNF) or a JSON schema: which tokens may come next, through llguidance."""

from __future__ import annotations

import functools
import json
import logging
import re
import threading

import numpy as np

from ikpy_llm.errors import IkpyError, shown
from ikpy_llm.text.grammar import json_schema
from ikpy_llm.text.grammar import lark as gbnf_lark

log = logging.getLogger("ikpy.grammar")
STACK = 64 << 20  # bytes, for llguidance's recursion: 10,000 rules that refer to each other in a row take less
MAX_LARK = 1_000_000  # characters of a grammar in llguidance's own notation
MAX_RULES = 2000  # of it
MAX_CHOICES = 20_000  # of it: alternatives, 1 s
_told: set[int] = set()  # hashes of relaxed schemas that a warning was given for


def library():
    """The module llguidance; IkpyError says what to install."""
    try:
        import llguidance
    except ImportError:
        raise IkpyError("grammars and JSON schemas need the package llguidance: pip install llguidance") from None
    return llguidance


class Grammar:
    """Where a text stands in a grammar. `mask()`: which tokens may come now; `accept(token)`: one has come.

    `finished`: the text is complete and nothing but its end may follow.
    """

    def __init__(self, vocab, source: str, kind: str, n_vocab: int | None = None):
        """`source`: a grammar (`kind` "gbnf") or a JSON schema ("json"); `n_vocab`: logits of the model."""
        self.n_vocab, self._kind = n_vocab or vocab.n_tokens, kind
        lib = library()
        try:
            tokenizer = _tokenizer(vocab, self.n_vocab)
            if kind == "json":
                self._matcher = _json_matcher(lib, tokenizer, source)
            else:
                self._matcher = _matcher(lib, tokenizer, source, vocab)
        except IkpyError:
            raise
        except Exception as error:  # its parsers raise many types
            raise self._bad(error) from None
        self._check()

    def _bad(self, error) -> IkpyError:
        text = " ".join(str(error).split("<state>")[0].split())  # what follows is the matcher's own state
        if text.startswith("NoExtension"):
            text = "no token of the vocabulary goes on with the text"
        what = {"gbnf": "the grammar", "json": "the JSON schema"}[self._kind]
        return IkpyError(f"{what} cannot be used: {shown(text, 200)[1:-1]}")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self._bad(self._matcher.get_error())

    def mask(self) -> np.ndarray:
        """bool (n_vocab,)."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: self.n_vocab].astype(bool)
        return np.pad(allowed, (0, self.n_vocab - len(allowed)))

    def accept(self, token: int) -> None:
        """`token`, one that the mask allowed, is the next of the text."""
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            self._check()

    @property
    def finished(self) -> bool:
        return self._matcher.is_stopped()


def rules_of(vocab, grammar: str | None, schema, n_vocab: int) -> Grammar:
    """The rules of one of the two: GBNF, or a JSON schema (see json_schema.as_text). IkpyError for both at once."""
    if grammar is not None and schema is not None:
        raise IkpyError("grammar and json_schema exclude each other")
    if grammar is not None:
        return Grammar(vocab, grammar, "gbnf", n_vocab)
    return Grammar(vocab, json_schema.as_text(schema), "json", n_vocab)


def _matcher(lib, tokenizer, source: str, vocab):
    """llguidance's matcher of a grammar in GBNF or, where it begins so, in llguidance's own notation."""
    if not source.lstrip().startswith("%llguidance"):
        lark = gbnf_lark.to_lark(source, lambda text: vocab.encode(text, add_special=False, parse_special=True))
        return _deep(lib, tokenizer, lib.grammar_from("lark", lark))
    rules = len(re.findall(r"^\s*[A-Za-z_][\w-]*\s*(?:\[[^\]\n]*\])?\s*:", source, re.MULTILINE))
    for n, limit, what in (
        (len(source), MAX_LARK, "characters"),
        (rules, MAX_RULES, "rules"),
        (source.count("|"), MAX_CHOICES, "alternatives"),
    ):
        if n > limit:
            raise IkpyError(f"the grammar has {n} {what}; up to {limit} are accepted")
    return _deep(lib, tokenizer, lib.grammar_from("lark", source))


def _json_matcher(lib, tokenizer, source: str):
    """llguidance's matcher of a JSON schema; what it cannot enforce is left out, and named in a warning."""
    schema, left_out = json_schema.read(source)
    options = {"whitespace_pattern": json_schema.WHITESPACE, "lenient": True}

    def matcher(schema: dict):
        return _deep(lib, tokenizer, lib.LLMatcher.grammar_from_json_schema(json.dumps(schema), options))

    found = matcher(schema)
    for message in (found.get_error(), *found.get_grammar_warnings()):
        schema, more = json_schema.without(schema, message)
        if more:
            left_out, found = [*left_out, *more], matcher(schema)
    names = [*left_out, *(name for warning in found.get_grammar_warnings() for name in json_schema.named(warning))]
    names = tuple(dict.fromkeys(names))
    if names and hash(source) not in _told:
        _told.add(hash(source))
        log.warning("the JSON schema is not enforced in full; left out: %s", ", ".join(names))
    return found


def _deep(lib, tokenizer, grammar: str):
    """A matcher, made by a thread with room for deep recursion."""
    made, wrong = [], []

    def make() -> None:
        try:
            made.append(lib.LLMatcher(tokenizer, grammar, log_level=0))
        except Exception as error:
            wrong.append(error)

    thread = threading.Thread(target=make, name="ikpy-grammar")
    before = threading.stack_size(STACK)
    try:
        thread.start()
    except RuntimeError:  # no more threads, or no memory for the stack
        make()
    else:
        thread.join()
    finally:
        threading.stack_size(before)
    if wrong:
        raise wrong.pop()  # not kept by the frame that its traceback keeps
    return made[0]


@functools.lru_cache(maxsize=1)
def _tokenizer(vocab, n_vocab: int):
    """llguidance's view of the vocabulary; half a second for 150,000 tokens, so the last one is kept."""
    lib = library()
    ends = sorted(vocab.eog)
    if not ends:
        raise IkpyError(
            "a grammar needs a token that ends a text; the vocabulary has none (tokenizer.ggml.eos_token_id)"
        )

    class View:
        """What llguidance's TokenizerWrapper reads."""

        eos_token_id, bos_token_id = ends[0], vocab.bos
        special_token_ids = [i for i in range(vocab.n_tokens) if not vocab.token_bytes(i)]  # noqa: RUF012
        tokens = [vocab.token_bytes(i, i not in vocab.eog) for i in range(vocab.n_tokens)]  # noqa: RUF012
        tokens += [b""] * (n_vocab - len(tokens))

        def __call__(self, text):
            return vocab.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"), add_special=False)

    return lib.LLTokenizer(lib.TokenizerWrapper(View()), n_vocab=n_vocab, eos_token=ends)
