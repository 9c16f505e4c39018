"""Conversations: a turn evaluates only what is new; stop strings and ends stay out; the cache follows the messages."""

import json

import numpy as np
import pytest

from ikpy_llm.engine.step.conversation import Cache, Conversation, End, common, stream
from ikpy_llm.errors import IkpyError
from ikpy_llm.sampling.sampler import Sampler, SamplerOptions
from ikpy_llm.text.chat.chat import ChatTemplate

CHARS = "abcdefghijklmnopqrstuvwxyz :"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}<assistant>"


class Vocab:
    """One token per character, and the special tokens of the template."""

    special = ("<user>", "<assistant>", "<system>", "<end>")
    n_tokens, eog = 32, frozenset({31})

    def encode(self, text, add_special=True, parse_special=False):
        out = []
        while text:
            mark = next((s for s in self.special if text.startswith(s)), None)
            out.append(28 + self.special.index(mark) if mark else CHARS.index(text[0]))
            text = text[len(mark or text[0]) :]
        return out

    def starts_special(self, text):
        return text.startswith(self.special)

    def decoder(self, skip_special=True):
        return self

    def feed(self, token):
        return CHARS[token] if token < 28 else ""

    def flush(self):
        return ""


class Session:
    """A model that has learned answers by heart: after <assistant> it writes the next of them, then <end>."""

    n_ctx, n_evaluated = 200, 0  # nobody else uses it: positions say enough

    def __init__(self, *answers):
        self.answers, self.text, self.evaluated, self.answering = list(answers), [], [], []

    @property
    def position(self):
        return len(self.text)

    def rewind(self, n):
        self.text = self.text[:n]

    def eval(self, tokens):
        self.evaluated.append(list(tokens))
        self.text += tokens
        if tokens[-1] == 29:
            self.answering = [*Vocab().encode(self.answers.pop(0)), 31]
        logits = np.zeros((1, 32), np.float32)
        logits[0, self.answering.pop(0) if self.answering else 31] = 9
        return logits


def talk(session, **options):
    return Conversation(Cache(session), Vocab(), ChatTemplate(TEMPLATE), **options)


def sampler():
    return Sampler(SamplerOptions(temp=0), 32)


def ask(conversation, text, **options):
    conversation.messages.append({"role": "user", "content": text})
    return "".join(conversation.reply(sampler(), **options))


def test_only_new_tokens_are_evaluated():
    session = Session("hello", "two", "red")
    c = talk(session, messages=[{"role": "system", "content": "short"}])
    assert ask(c, "hi") == "hello" and c.why == "eos"
    prompt = Vocab().encode("<system>short<end><user>hi<end><assistant>")
    assert session.evaluated[0] == prompt and [len(t) for t in session.evaluated[1:]] == [1] * 5
    session.evaluated.clear()
    assert ask(c, "sum") == "two"
    assert session.evaluated[0] == Vocab().encode("<end><user>sum<end><assistant>")
    assert session.text == Vocab().encode(
        "<system>short<end><user>hi<end><assistant>hello<end><user>sum<end><assistant>two"
    )
    session.evaluated.clear()
    c.messages[-3:] = []  # another second question
    c.messages.append({"role": "assistant", "content": "hello"})
    c.messages = c.messages[:3]
    assert ask(c, "six") == "red"
    assert session.evaluated[0] == Vocab().encode("ix<end><assistant>")
    assert [m["role"] for m in c.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_stop_strings_length_and_interruption():
    session = Session("hello user: more", "abcdef", "abcdef", "x")
    c = talk(session)
    assert ask(c, "hi", stops=["user:"]) == "hello " and c.why == "stop"
    assert ask(c, "b", n_predict=3) == "abc" and c.why == "length"
    c.messages.append({"role": "user", "content": "c"})
    pieces = c.reply(sampler())
    assert next(pieces) == "a"
    pieces.close()
    assert c.messages[-1] == {"role": "assistant", "content": "a"} and c.why == "interrupted"
    assert ask(c, "d") == "x"
    assert session.text == Vocab().encode(ChatTemplate(TEMPLATE).render(c.messages[:-1]) + "x")


def test_a_cache_that_others_used_is_not_trusted():
    session = Session("a", "b")
    c = talk(session)
    ask(c, "hi")
    session.rewind(0)
    session.evaluated.clear()
    assert ask(c, "ho") == "b"
    assert len(session.evaluated[0]) == len(Vocab().encode("<user>hi<end><assistant>a<end><user>ho<end><assistant>"))


def test_cache_where_a_window_forbids_to_go_back():
    class Ring(Session):
        def rewind(self, n):
            if n:
                raise IkpyError("the window has moved on")
            super().rewind(n)

    session = Ring()
    cache = Cache(session)
    cache.eval([1, 2, 3])
    assert cache.reuse([1, 2, 4]) == [1, 2, 4] and session.position == 0
    cache.eval([1, 2, 4])
    assert cache.reuse([1, 2, 4, 5]) == [5]
    assert common([1, 2], [1, 2, 3]) == 2 and common([], [1]) == 0


def test_same_prompt_again_evaluates_its_last_token():
    cache = Cache(Session())
    cache.eval([1, 2, 3])
    assert cache.reuse([1, 2, 3]) == [3]


def test_stream_says_why_it_ended():
    def end(**options):
        source = stream(
            Cache(Session("abc")), [29], sampler(), **{"n_predict": -1, "ends": {31}, "decoder": Vocab()} | options
        )
        pieces = []
        while True:
            try:
                pieces.append(next(source))
            except StopIteration as stop:
                return "".join(pieces), stop.value

    assert end() == ("abc", End([0, 1, 2], "eos"))
    assert end(n_predict=2) == ("ab", End([0, 1], "length"))
    assert end(stops=["b"]) == ("a", End([0, 1], "stop", "b"))
    assert end(stops=["cx"]) == ("abc", End([0, 1, 2], "eos"))  # what was held back comes at the end
    assert end(n_predict=0) == ("", End([], "length"))


def test_a_full_context_forgets_the_older_half():
    class Counter(Session):
        """Writes the number of tokens it sees, modulo 26."""

        n_ctx = 12

        def eval(self, tokens):
            self.evaluated.append(list(tokens))
            self.text += tokens
            assert len(self.text) <= self.n_ctx
            return np.eye(32, dtype=np.float32)[None, len(self.text) % 26]

    def run(**options):
        session = Counter()
        source = stream(Cache(session), [1, 2, 3], sampler(), ends=(), decoder=Vocab(), **options)
        return len("".join(source)), session

    assert run(n_predict=-1)[0] == run(n_predict=50)[0] == 10  # the last one needs no place
    n, session = run(n_predict=50, keep=2)
    assert n == 50 and session.text[:2] == [1, 2]
    assert max(map(len, session.evaluated[1:])) == 5  # the newer half of 11 others, moved
    assert run(n_predict=50, keep=-1)[1].text[:3] == [1, 2, 3]
    assert run(n_predict=50, keep=0)[0] == run(n_predict=50, keep=99)[0] == 50


def test_too_long_and_saved(tmp_path):
    c = talk(Session("x"))
    c.messages.append({"role": "user", "content": "a" * 300})
    with pytest.raises(IkpyError, match="does not fit"):
        list(c.reply(sampler()))
    c.save(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8")) == c.messages
    with pytest.raises(IkpyError, match="nowhere"):
        c.save(tmp_path / "nowhere" / "x")
