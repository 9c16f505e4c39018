"""A model has one KV cache: of two texts in turns the older one ends with an error, never with wrong text."""

import threading

import numpy as np
import pytest
from test_api import path  # noqa: F401  (a fixture)

from ikpy_llm import IkpyError, Model

HOW = {"n_predict": 20, "temp": 0, "ignore_eos": True}
CHATTY = {"template": "{% for m in messages %}{{ m.content }}{% endfor %}", "n_predict": 20, "temp": 0}


@pytest.fixture
def model(path):  # noqa: F811
    with Model.load(path, n_ctx=256, threads=2) as model:
        yield model


def chat(model, text):
    return model.chat([{"role": "user", "content": text}], ignore_eos=True, **CHATTY)


WAYS = (
    lambda m: m.generate("AB", **HOW),
    lambda m: m.generate("ABCDEFG", seed=3, n_predict=20, ignore_eos=True),
    lambda m: chat(m, "ABC"),
)
OTHERS = {
    "generate": lambda m: next(m.generate("XYZ", **HOW)),
    "same prompt": lambda m: next(m.generate("AB", **HOW)),
    "chat": lambda m: next(chat(m, "XY")),
    "embed": lambda m: m.embed("XYZ"),
    "logits": lambda m: m.logits([1, 2, 3]),
    "perplexity": lambda m: m.perplexity("ABCDEFGH" * 70, 256),
    "reset": lambda m: m.reset(),
    "session": lambda m: m.session.eval([1]),
    "load": lambda m: m.load_session(m.save_session_path),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("way", range(len(WAYS)))
def test_the_later_use_wins(model, tmp_path, way, other):
    text = "".join(WAYS[way](model))
    model.save_session_path = tmp_path / "s"
    model.save_session(model.save_session_path)
    older, pieces = WAYS[way](model), []
    pieces += [next(older), next(older)]
    OTHERS[other](model)
    with pytest.raises(IkpyError, match=r"this text cannot go on.*load the model once for each") as caught:
        pieces += older
    assert "\n" not in str(caught.value) and text.startswith("".join(pieces))
    assert "".join(WAYS[way](model)) == text  # what comes after is as if nothing had been


def test_a_session_taken_before_the_text_is_noticed_too(model):
    session = model.session
    text = "".join(model.generate("AB", **HOW))
    older = model.generate("AB", **HOW)
    next(older)
    position = session.position
    session.rewind(position - 1)
    session.eval([7])
    assert session.position == position
    with pytest.raises(IkpyError, match="this text cannot go on"):
        next(older)
    assert "".join(model.generate("AB", **HOW)) == text


def test_what_disturbs_nothing_is_allowed(model, tmp_path):
    text = "".join(model.generate("AB", **HOW))
    pieces = []
    for piece in model.generate("AB", **HOW):
        pieces.append(piece)
        model.tokenize("XYZ")
        model.generate("XYZ", **HOW)  # not begun
        model.session.position, model.timings, model.cached_tokens  # noqa: B018
    assert "".join(pieces) == text
    first, second = (model.generate(prompt, **HOW) for prompt in ("AB", "AB"))
    assert "".join(first) == "".join(second) == text  # made together, read one after the other
    saved = model.generate("AB", **HOW)
    pieces = [next(saved)]
    model.save_session(tmp_path / "s")
    assert "".join([*pieces, *saved]) == text


def test_two_chats_made_together_keep_their_own_messages(model):
    texts = {prompt: "".join(chat(model, prompt)) for prompt in ("ABC", "XY")}
    assert texts["ABC"] != texts["XY"]
    first, second = chat(model, "ABC"), chat(model, "XY")
    assert "".join(first) == texts["ABC"] and "".join(second) == texts["XY"]


def test_an_abandoned_text_blocks_nothing(model):
    text = "".join(model.generate("AB", **HOW))
    kept = [model.generate("XYZ", **HOW) for _ in range(3)]
    for one in kept:
        next(one)
    assert "".join(model.generate("AB", **HOW)) == text


def test_threads_give_their_own_text_or_an_error(model):
    prompts = ["AB", "CDE", "FGHI", "JKLMN"]
    alone = {p: "".join(model.generate(p, **HOW)) for p in prompts}
    vectors = {p: model.embed(p) for p in prompts}
    wrong, refused, done = [], [], []

    def work(prompt):
        for _ in range(10):
            try:
                text = "".join(model.generate(prompt, **HOW))
                (done if text == alone[prompt] else wrong).append(prompt)
            except IkpyError as error:
                refused.append(str(error))
            if not np.array_equal(model.embed(prompt), vectors[prompt]):
                wrong.append(prompt)

    threads = [threading.Thread(target=work, args=(p,)) for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and refused and len(done) + len(refused) == 40
    assert all("this text cannot go on" in text for text in refused)


def test_conversations_take_turns_between_replies(path):  # noqa: F811
    """Two conversations are fine as long as one reply ends before the next begins."""
    with Model.load(path, n_ctx=256, threads=2) as model:
        both = [model.conversation(template=CHATTY["template"]) for _ in range(2)]
        for turn in ("AB", "CD"):
            for one in both:
                one.messages.append({"role": "user", "content": turn})
                "".join(one.reply(model.sampler(temp=0), n_predict=5))
        assert both[0].messages == both[1].messages and len(both[0].messages) == 4
