"""Arguments that have no truth value, or are not equal to anything: arrays, and classes as pandas has them."""

import numpy as np
import pytest
import tiny_chat
from test_arguments import load, outcome
from tiny_chat import CHAT

from ikpy_llm import ArgumentError, Model


@pytest.fixture(scope="module")
def path(folder):
    return tiny_chat.write(folder / "m.gguf")


@pytest.fixture(scope="module")
def model(path):
    with Model.load(path, n_ctx=256, threads=1) as model:
        yield model


class Frame:
    """As pandas has them: no truth value, and comparisons give another one."""

    shape, __hash__ = (1, 1), None

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")

    def __eq__(self, other):
        return self


class Texts(list):
    __hash__, __bool__, __eq__ = None, Frame.__bool__, Frame.__eq__


class Names(dict):
    __hash__, __bool__, __eq__ = None, Frame.__bool__, Frame.__eq__


class Text(str):
    __hash__, __bool__, __eq__ = str.__hash__, Frame.__bool__, Frame.__eq__


class Whole(int):
    __hash__, __bool__, __eq__ = int.__hash__, Frame.__bool__, Frame.__eq__


NO_ARRAYS = [np.array([1.5]), np.array([]), np.array(["a", "b"]), np.array([None, object()]), np.zeros((2, 2)), Frame()]
NO_ARRAYS += [np.array([{"type": "text", "text": "A"}]), np.float32(1), np.datetime64("2020"), np.void(b"abc")]
UNTESTED = [*NO_ARRAYS, Texts(["a"]), Texts(), Names(a=1), Text("x"), Whole(1), np.str_("x"), np.array("x"), np.True_]


def messages_with(value):
    """(where, messages) with a value in every place."""
    user = {"role": "user", "content": "A"}
    yield "message", [value]
    for key in ("content", "role", "name", "tool_call_id", "other"):
        yield key, [user | {key: value}]
    yield "part", [user | {"content": [value]}]
    for key in ("type", "text"):
        yield f"part {key}", [user | {"content": [{"type": "text", "text": "A"} | {key: value}]}]
    for key in ("tool_calls", "function_call", "reasoning_content", "thinking"):
        yield key, [user, {"role": "assistant", "content": None, key: value}, user]
    call = {"name": "f", "arguments": {"a": 1}}
    for calls in ([value], [{"function": value}], *([{"function": call | {k: value}}] for k in call)):
        yield "call", [user, {"role": "assistant", "content": "A", "tool_calls": calls}, user]
    arguments_of_call = [{"function": call | {"arguments": {"a": value}}}]
    yield "value of arguments", [user, {"role": "assistant", "content": "A", "tool_calls": arguments_of_call}, user]


CALLS = """{% for m in messages %}<|u|>{{ m.content }}{% for t in m.tool_calls or [] %}{{ t.function.name + '(' +
t.function.arguments + ')' }}{% endfor %}{% endfor %}<|a|>"""


@pytest.mark.parametrize("value", UNTESTED, ids=range(len(UNTESTED)))
def test_values_without_a_truth_value(model, path, value):
    """The truth of what a caller hands over is never asked for, nor is it compared, before its kind is known."""
    for where, messages in messages_with(value):
        for template in (None, CALLS):
            found = outcome(lambda **given: model.chat(**given), {"messages": messages, "n_predict": 1} | {
                "template": template})  # fmt: skip
            if where == "content" and any(value is v for v in NO_ARRAYS):
                assert isinstance(found, ArgumentError) and "message 0 has the content" in str(found)
    said = {"messages": CHAT, "n_predict": 1}
    for given in ({"tools": value}, {"tools": [value]}, {"tools": [{"function": value}]}, {"template_kwargs": value}):
        outcome(model.chat, said | given)
    outcome(
        model.chat,
        said | {"template_kwargs": {"x": value}, "template": "{% if x %}{{ messages[0].content }}{% endif %}"},
    )
    for name in (
        "stop",
        "ignore_eos",
        "keep",
        "seed",
        "samplers",
        "logit_bias",
        "dry_sequence_breakers",
        "json_schema",
    ):
        for given in (value, [value], {1: value}):
            outcome(model.generate, {"prompt": "AB", "n_predict": 1, name: given})
    for given in (value, [value]):
        outcome(model.generate, {"prompt": given, "n_predict": 1})
        outcome(model.detokenize, {"ids": given})
        outcome(model.ends, {"stop": given})
    for given in (value, {"general.name": value}):
        outcome(load, {"path": path, "n_ctx": 256, "threads": 1, "override_kv": given})


def test_subclasses_count_as_what_they_are(model):
    text = "".join(model.chat(CHAT, n_predict=3, temp=0))
    for kind in (Text, np.str_, np.array):
        messages = [{"role": kind("user"), "content": kind("AB")}]
        assert "".join(model.chat(messages, n_predict=3, temp=0)) == text
        parts = [{"role": "user", "content": Texts([{"text": kind("AB")}])}]
        assert "".join(model.chat(parts, n_predict=3, temp=0, tools=Texts(), template_kwargs=Names(a=1))) == text
    assert model.sampler(logit_bias=Names({1: 2.0})).options.logit_bias == {1: 2.0}
