"""A conversation over one session: it knows which tokens the KV cache holds, so a turn evaluates only what is new."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from ikpy_llm import files, forks
from ikpy_llm.arguments import checks_methods, file_path, refuse, whole
from ikpy_llm.engine.cache import session_file
from ikpy_llm.errors import IkpyError
from ikpy_llm.text.chat.chat import ChatTemplate, begun, checked
from ikpy_llm.text.stops import StopMatcher, checked_ends, checked_stops

MESSAGES = files.Kind("a list of messages", rb'\s*\[\s*(\]|\{\s*")')
OTHER_TEXT = (
    "this text cannot go on: the model was used for something else after its last piece, and has one KV cache only; "
    "end one text before the next begins, or load the model once for each"
)


class Cache:
    """A session and the tokens that its KV cache holds. All evaluation goes through it, or `forget` is called.

    Who begins a text has the cache (`begin`) until the next one begins or the session is used by others; a text that
    has lost it cannot go on. Steps that belong together are done while holding `lock`.
    """

    def __init__(self, session):
        self.session, self.tokens = session, []
        forks.lock(self, "lock", threading.RLock)
        self.after_prompt: Callable[[], None] | None = None  # called once, when a text has been read
        self._owner, self._left = None, self._state()

    def _state(self) -> tuple[int, int]:
        """What changes whenever the session is used."""
        return self.session.position, self.session.n_evaluated

    def begin(self) -> object:
        """The cache is for a new text from now on; what that one gives to `check`."""
        self._owner = object()
        return self._owner

    def check(self, owner: object) -> None:
        """IkpyError unless the text of `owner` still has the cache."""
        if owner is not self._owner or self._left != self._state():
            raise IkpyError(OTHER_TEXT)

    def forget(self) -> None:
        """The session is used by others: nothing in it can be relied on."""
        with self.lock:  # not within a step of another thread
            self.tokens = []

    def reuse(self, tokens: list[int]) -> list[int]:
        """Keep the longest common beginning with `tokens`, forget the rest; the tokens still to be evaluated.

        At least the last one is left: its logits are wanted.
        """
        if self._left != self._state() or self.session.position != len(self.tokens):
            self.tokens = []
        n = common(self.tokens, tokens[:-1])
        if n < self.session.position:
            try:
                self.session.rewind(n)
            except IkpyError:  # what a sliding window has dropped cannot come back
                n = 0
                self.session.rewind(0)
        self.tokens, self._left = self.tokens[:n], self._state()
        return tokens[n:]

    def eval(self, tokens: list[int]) -> np.ndarray:
        """float32 (n_vocab,): the logits after these tokens, which follow those in the cache."""
        try:
            logits = self.session.eval(tokens)[0]
            self.tokens += tokens
        finally:
            self._left = self._state()
        if self.after_prompt is not None:
            call, self.after_prompt = self.after_prompt, None
            call()
        return logits

    def save(self, path) -> int:
        """Write tokens and KV cells to a file; bytes of it. IkpyError as session_file.save, and for nothing."""
        with self.lock:
            if not self.tokens or self._left != self._state() or self.session.position != len(self.tokens):
                raise IkpyError(f"{path}: there is no text in the cache that could be saved")
            return session_file.save(path, self.session, self.tokens)

    def load(self, path) -> list[int]:
        """The tokens that a file fills the cache with. IkpyError as session_file.load."""
        with self.lock:
            self.begin()
            self.tokens = []
            self.tokens = session_file.load(path, self.session)
            self._left = self._state()
            return list(self.tokens)


def common(a: list[int], b: list[int]) -> int:
    """Length of the longest common beginning."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


@dataclass(frozen=True)
class End:
    """How a text ended. `why`: "eos", "stop" (at `stop`), "length" or "grammar"; `ids`: what was generated."""

    ids: list[int]
    why: str
    stop: str | None = None

    def __repr__(self) -> str:
        return f"End(why={self.why!r}, stop={self.stop!r}, ids=[{_some(self.ids)}])"


def _some(ids: list[int]) -> str:
    """The first ids of a list and how many there are."""
    return ", ".join(map(str, ids)) if len(ids) <= 8 else f"{', '.join(map(str, ids[:6]))}, ... {len(ids)} tokens"


def checked_n_predict(n: int) -> int:
    """`n` if it is a number of tokens, -1 (until the model ends its text) or -2 (it cannot end it)."""
    return whole("n_predict", n, -2)


def stream(
    cache: Cache, tokens: list[int], sampler, *, n_predict: int, ends, stops=(), decoder, keep: int | None = None
) -> Generator[str, None, End]:
    """Continue `tokens`; yields pieces of text as they come, never a part of a stop string; its value is an End.

    n_predict < 0: until the model ends its text (a token of `ends`, which is not shown) or the context is full.
    keep: when it is full, go on without the older half of the text but for so many tokens at its beginning, -1: the
    prompt; None, or with n_predict -2: end there.
    IkpyError where the session was used for something else between two pieces: the later use wins.
    """
    session, matcher, text, out, why = cache.session, StopMatcher(stops), list(tokens), [], "length"
    keep = None if n_predict == -2 else keep
    endless = n_predict < 0 and keep is not None
    n_kept = len(tokens) if keep is not None and keep < 0 else keep or 0
    left = n_predict if n_predict >= 0 else session.n_ctx
    with cache.lock:
        owner, tokens = cache.begin(), cache.reuse(tokens)
    while left > 0:
        with cache.lock:
            cache.check(owner)
            logits = cache.eval(tokens)
        token = sampler.sample(logits[: sampler.n_vocab])
        if token in ends:
            why = "eos"
            break
        sampler.accept(token)
        out.append(token)
        text.append(token)
        if piece := matcher.feed(decoder.feed(token)):
            yield piece
        if matcher.found is not None:
            why = "stop"
            break
        if sampler.grammar is not None and sampler.grammar.finished:
            why = "grammar"
            break
        tokens, left = [token], left - (not endless)
        if len(text) > session.n_ctx:  # the newest has no place
            if keep is None:
                break
            text = shifted(text, min(n_kept, session.n_ctx // 2))
            with cache.lock:
                cache.check(owner)
                tokens = cache.reuse(text)
    if piece := matcher.feed(decoder.flush()) + matcher.flush():
        yield piece
    return End(out, why, matcher.found)


def shifted(text: list[int], n_kept: int) -> list[int]:
    """Its first tokens and the newer half of the others."""
    rest = text[n_kept:]
    return text[:n_kept] + rest[(len(rest) + 1) // 2 :]


@checks_methods()
class Conversation:
    """Messages, and the tokens that stand for them. `messages`: as in OpenAI's API, free to be changed by the caller.

    `why`: how the last reply ended, see `stream`.
    """

    def __init__(self, cache: Cache, vocab, template: ChatTemplate, /, messages=(), **variables):
        self.cache, self.vocab, self.template, self.variables = cache, vocab, template, variables
        self.messages, self.why = checked(messages), ""
        self._text, self._ids = "", []  # a rendered conversation with its last reply, and the tokens of both

    def __repr__(self) -> str:
        return f"<Conversation of {len(self.messages)} messages, last reply: {self.why or 'none'}>"

    def tokens(self, add_generation_prompt: bool = True, messages: list | None = None) -> tuple[str, list[int]]:
        """The rendered conversation as text and as tokens. messages: others than its own.

        What the model wrote itself keeps the tokens it chose, which need not be those of its text read again.
        """
        messages = self.messages if messages is None else messages
        text = self.template.render(messages, add_generation_prompt=add_generation_prompt, **self.variables)
        rest = text[len(self._text) :] if self._text and text.startswith(self._text) else None
        if rest and self.vocab.starts_special(rest):
            return text, self._ids + self.vocab.encode(rest, add_special=False, parse_special=True)
        bos = self.template.variables["bos_token"]  # most templates write it themselves
        has_bos = bool(bos) and text.startswith(bos)
        return text, self.vocab.encode(text, add_special=not has_bos, parse_special=True)

    def reply(
        self, sampler, *, n_predict: int = -1, stops=(), ends=None, show_special: bool = False
    ) -> Generator[str, None, End]:
        """The next message of the assistant in pieces; it joins `messages` when the generator ends, or is closed after
        it has begun.

        The generator's own value says how it ended. ends: tokens that end it, default: the vocabulary's.
        show_special: `<|...|>` tokens are part of the text.
        """
        if not hasattr(sampler, "sample"):
            refuse("sampler", sampler, "what Model.sampler returns")
        n_predict, ends = checked_n_predict(n_predict), checked_ends(ends, self.vocab.eog)
        return self._reply(begun(self.messages), sampler, n_predict, checked_stops(stops), ends, show_special)

    def _reply(self, messages: list, sampler, n_predict: int, stops, ends, show_special: bool):
        """`reply` to these messages, whatever `messages` is when the first piece is asked for."""
        text, tokens = self.tokens(messages=messages)
        if len(tokens) > self.cache.session.n_ctx:
            raise IkpyError(
                f"the conversation of {len(tokens)} tokens does not fit into the context of "
                f"{self.cache.session.n_ctx}; choose a larger one (-c), or clear it"
            )
        for token in tokens:
            sampler.accept(token)
        pieces, end, self.why = [], None, "interrupted"
        decoder = self.vocab.decoder(not show_special)
        source = stream(self.cache, tokens, sampler, n_predict=n_predict, ends=ends, stops=stops, decoder=decoder)
        try:
            while True:
                try:
                    piece = next(source)
                except StopIteration as last:
                    end, self.why = last.value, last.value.why
                    return end
                pieces.append(piece)
                yield piece
        finally:
            source.close()
            answer = "".join(pieces)
            if answer or end is not None:  # else it was interrupted while the messages were read
                messages.append({"role": "assistant", "content": answer})
            if end is not None and self.why != "stop":
                self._text, self._ids = text + answer, tokens + end.ids
            else:  # the text is cut within a token
                self._text, self._ids = "", []

    def save(self, path) -> None:
        """Write the messages as JSON."""
        path = file_path("path", path)
        try:
            text = json.dumps(self.messages, ensure_ascii=False, indent=1)
        except (TypeError, ValueError, RecursionError) as error:
            raise IkpyError(f"{path}: the messages cannot be written as JSON: {error}") from None
        # half a surrogate pair is written as JSON's \\uXXXX
        files.write(path, text.encode("utf-8", "backslashreplace"), kind=MESSAGES, streams=True, durable=True)
