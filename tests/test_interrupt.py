"""Long steps are run in parts: the bits are the same, progress is told between them, and whatever stops one there
leaves the session as it was."""

import threading
import time

import numpy as np
import pytest
import tiny_llama
import tiny_moe
from sessions import session
from test_conversation import CHARS, Vocab, sampler
from test_conversation import Session as Parrot

from ikpy_llm.engine.program import program
from ikpy_llm.engine.step.conversation import Cache, Conversation, stream
from ikpy_llm.kernels.derive import bench
from ikpy_llm.text.chat.chat import ChatTemplate

TOKENS = np.random.default_rng(1).integers(0, tiny_llama.N_VOCAB, 300).tolist()


@pytest.fixture(scope="module", params=["llama", "moe"])
def path(request, folder):
    write = {"llama": tiny_llama.write, "moe": tiny_moe.write}[request.param]
    return write(folder / f"{request.param}.gguf")


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_give_the_same_bits(path, threads, monkeypatch):
    with session(path, threads=threads, n_ubatch=128) as s:
        expected = s.eval(TOKENS, all_logits=True), s.eval([5])
        assert len(s.program("all").parts(128, s.program("all").count)) == 1  # little work is not cut
    for part in (1, 3e5):
        monkeypatch.setattr(program, "PART", part)
        with session(path, threads=threads, n_ubatch=128) as s:
            np.testing.assert_array_equal(s.eval(TOKENS, all_logits=True), expected[0])
            np.testing.assert_array_equal(s.eval([5]), expected[1])
            s.rewind(0)
            np.testing.assert_array_equal(s.eval(TOKENS)[0], expected[0][-1])
            assert len(s.program("prompt").parts(128, s.program("prompt").count)) > 5


def test_parts_end_at_barriers(path):
    with session(path) as s:
        p = s.program("prompt")
        for n in (1, 64):
            for count in (p.count, p.body):
                parts = p.parts(n, count)
                assert sum(parts) == count and min(parts) > 0
                ends = np.cumsum(parts)[:-1] - 1
                assert all(p.plan.barriers[i] for i in ends)


def test_progress_while_tokens_are_read(path, monkeypatch):
    monkeypatch.setattr(program, "PART", 1)
    with session(path, n_ubatch=128) as s:
        told = []
        s.progress = lambda *words: told.append(words)
        s.eval(TOKENS)
        done = [n for n, *_ in told]
        assert {total for _, total, _ in told} == {300} and done == sorted(done) and (done[0], done[-1]) == (0, 300)
        assert len(set(done)) > 10
        told.clear()
        s.eval([1])  # a single token is no prompt
        assert not told


def test_what_stops_a_step_leaves_the_session_as_it_was(path, monkeypatch):
    monkeypatch.setattr(program, "PART", 1)

    def strike(done, total, name):
        if done >= 40:
            raise KeyboardInterrupt

    with session(path, n_ubatch=64) as s:
        expected = s.eval(TOKENS[:9])
        s.rewind(0)
        s.eval(TOKENS[:5])
        s.progress = strike
        with pytest.raises(KeyboardInterrupt):
            s.eval(TOKENS[50:250])
        assert s.position == 5
        s.progress = None
        np.testing.assert_array_equal(s.eval(TOKENS[5:9]), expected)


class Stopped(Parrot):
    """A model whose user presses Ctrl-C while a long message is read."""

    def eval(self, tokens):
        if len(tokens) > 50:
            raise KeyboardInterrupt
        return super().eval(tokens)


def test_an_interrupted_message_gets_no_reply():
    session = Stopped("one", "two")
    c = Conversation(
        Cache(session), Vocab(), ChatTemplate("{% for m in messages %}<user>{{ m.content }}{% endfor %}<assistant>")
    )
    c.messages.append({"role": "user", "content": "a"})
    assert "".join(c.reply(sampler())) == "one"
    before = list(c.messages)
    c.messages.append({"role": "user", "content": CHARS * 3})
    with pytest.raises(KeyboardInterrupt):
        list(c.reply(sampler()))
    assert c.messages[:-1] == before and c.messages[-1]["role"] == "user" and c.why == "interrupted"
    c.messages[-1]["content"] = "b"
    session.evaluated.clear()
    assert "".join(c.reply(sampler())) == "two"
    assert len(session.evaluated[0]) < 20


def test_until_the_context_is_full_is_that():
    """n_predict -2 ends there, also where a full context could be shifted; -1 goes on."""

    class Counter(Parrot):
        n_ctx = 12

        def eval(self, tokens):
            self.text += tokens
            assert len(self.text) <= self.n_ctx
            return np.eye(32, dtype=np.float32)[None, len(self.text) % 26]

    def run(**options):
        pieces = stream(Cache(Counter()), [1, 2, 3], sampler(), ends=(), decoder=Vocab(), **options)
        return len([piece for _, piece in zip(range(100), pieces, strict=False)])

    assert run(n_predict=-2) == run(n_predict=-2, keep=0) == run(n_predict=-2, keep=-1) == 10
    assert run(n_predict=-1) == 10 and run(n_predict=-1, keep=0) == 100


def test_a_measurement_that_is_stopped_takes_its_threads_along(capfd):
    """Ctrl-C while this thread waits for the others: they end too, without a word."""

    def kernel(address, ith, nth):
        time.sleep(0.01)
        if ith == 0:
            calls.append(address)
            if len(calls) == 3:
                raise KeyboardInterrupt

    calls, before = [], threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        bench.median_run(kernel, [1], 3, 5.0)
    assert threading.active_count() == before and capfd.readouterr().err == ""
    assert bench.median_run(lambda *words: time.sleep(0.001), [1], 3, 0.01) > 0.0009
