"""Text that must follow a grammar (GBNF) or a JSON schema: which tokens may come next, through llguidance."""

from __future__ import annotations

import functools
import json

import numpy as np

from ikpy_llm.errors import IkpyError, shown

WHITESPACE = r" |\n{1,2}[ \t]{0,20}"  # between the parts of JSON, as llama.cpp has it; with more, weak models never end


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
            text = _grammar_text(lib, source, kind)
            self._matcher = lib.LLMatcher(_tokenizer(vocab, self.n_vocab), text, log_level=0)
        except IkpyError:
            raise
        except Exception as error:  # its parsers raise many types
            raise self._bad(error) from None
        self._check()

    def _bad(self, error) -> IkpyError:
        text = " ".join(str(error).split())
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


def _grammar_text(lib, source: str, kind: str) -> str:
    if kind == "gbnf":
        if source.lstrip().startswith("%llguidance"):
            return lib.grammar_from("lark", source)
        return lib.grammar_from("gbnf", source)
    try:
        schema = json.loads(source)
    except ValueError as error:
        raise IkpyError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise IkpyError(f"the JSON schema is {shown(source)}; an object is accepted")
    return lib.LLMatcher.grammar_from_json_schema(json.dumps(schema), {"whitespace_pattern": WHITESPACE})


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
