"""The form of messages: parts or text, arguments of calls as mapping or text; a text that is lost is never silent."""

import json
import logging

import pytest

from ikpy_llm.errors import IkpyError
from ikpy_llm.text.chat import chat
from ikpy_llm.text.chat.chat import ChatTemplate

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},  # a letter that stands in every template
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "1+1?"},
]
TEXTS = "[system|Be brief.][user|a][assistant|Hello][user|1+1?]"
PARTS = "{% for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}{% endif %}{% endfor %}"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Templates of strangers have a process of their own (test_chat_child.py), which takes a moment to start."""
    monkeypatch.setattr(chat, "known", lambda text: True)


def render(text, messages=TALK, **values):
    return ChatTemplate(text, "<s>", "</s>").render(messages, **values)


def around(inner):
    return LOOP + "[{{ m.role }}|" + inner + "]" + END


@pytest.mark.parametrize(
    "inner",
    [
        "{{ m.content }}",
        PARTS,
        "{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}",
        "{{ m['content'][0]['text'] }}",
        "{% if m.content is string %}{{ m.content }}{% else %}" + PARTS + "{% endif %}",
        "{% if m.content is not string %}" + PARTS + "{% endif %}",
        "{% if m.role == 'assistant' %}{{ m.content }}{% else %}" + PARTS + "{% endif %}",
        "{% if m.role == 'assistant' %}{{ m.content + '' }}{% else %}" + PARTS + "{% endif %}",
        "{% if m.role == 'system' %}{{ m.content[0].text }}{% else %}{{ m.content + '' }}{% endif %}",
        "{% if m.role == 'user' %}{{ m.content[0].text }}{% else %}{{ m.content.strip() }}{% endif %}",
    ],
)
def test_text_or_parts(inner):
    assert render(around(inner)) == TEXTS
    split = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TALK]
    assert render(around(inner), split) == TEXTS


def test_several_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"text": "yy"}]}]
    assert render(around("{{ m.content }}"), parts) == "[user|x\nyy]"
    assert render(around(PARTS), parts) == "[user|xyy]"  # as transformers: what joins them is the template's choice
    assert render(around("{{ m.content[0].text }}"), parts) == "[user|x\nyy]"  # one that reads the first part only
    assert parts[0]["content"][1] == {"text": "yy"}


@pytest.mark.parametrize(
    "inner",
    [
        "{{ m.contents }}",
        "{% if m.role != 'user' %}{{ m.content }}{% endif %}",
        "{% if not loop.last %}{{ m.content }}{% endif %}",
        "{% for line in m.content %}{% if line.type == 'image' %}{{ line.text }}{% endif %}{% endfor %}",
        "{{ m.content | replace('1+1?', '') }}",
        "{{ m.content.split('1')[0] if loop.last else m.content }}",
    ],
)
def test_a_lost_text_of_the_user_is_an_error(inner):
    with pytest.raises(IkpyError, match=r"leaves out the text of message \d \(role '\w+'\)") as caught:
        render(around(inner))
    assert "\n" not in str(caught.value)


def test_other_roles_that_are_lost():
    known = "{% if m.role in ('system', 'user', 'assistant') %}[{{ m.role }}|{{ m.content }}]{% endif %}"
    for role in ("tool", "function"):
        with pytest.raises(IkpyError, match=rf"message 4 \(role '{role}'\)"):
            render(LOOP + known + END, [*TALK, {"role": role, "content": "3"}])
    # a template without system texts gets them in front of the user's, be it silent or not
    users = "{% if m.role == 'user' %}[user|{{ m.content }}]{% endif %}"
    assert render(LOOP + users + END, TALK[:2]) == "[user|Be brief.\n\na]"
    with pytest.raises(IkpyError, match=r"message 2 \(role 'system'\)"):
        render(LOOP + users + END, [TALK[1], TALK[2], TALK[0], TALK[3]])


def test_developer_is_the_newer_name_of_system():
    talk = [{"role": "developer", "content": "Be brief."}, *TALK[1:]]
    assert render(around("{{ m.content }}"), talk) == TEXTS.replace("system", "developer")
    known = "{% if m.role in ('system', 'user', 'assistant') %}[{{ m.role }}|{{ m.content }}]{% endif %}"
    refuse = "{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no') }}{% endif %}"
    for text in (known, refuse + known):
        assert render(LOOP + text + END, talk) == TEXTS
    users = "{% if m.role == 'user' %}[user|{{ m.content }}]{% endif %}"
    assert render(LOOP + users + END, talk[:2]) == "[user|Be brief.\n\na]"
    assert talk[0]["role"] == "developer"


def test_texts_that_a_template_changes():
    talk = [{"role": "user", "content": "  One\n\tTwo <think>x</think> "}]
    for inner, want in (
        ("{{ m.content | trim }}", "One\n\tTwo <think>x</think>"),
        ("{{ m.content | upper }}", "  ONE\n\tTWO <THINK>X</THINK> "),
        ("{{ m.content.split('<think>')[0] }}", "  One\n\tTwo "),
        ("{{ m.content | tojson }}", json.dumps(talk[0]["content"])),
        ("{{ m.content | replace('Two', '2') }}", "  One\n\t2 <think>x</think> "),
        ("{{ m.content.split() | join(' ') }}", "One Two <think>x</think>"),
        ("{{ m.content | e }}", "  One\n\tTwo &lt;think&gt;x&lt;/think&gt; "),
    ):
        assert render(around(inner), talk) == f"[user|{want}]"
    blank = [{"role": "user", "content": " \n"}]
    assert render(around("{{ m.content | trim }}"), blank) == "[user|]"


def test_earlier_turns_may_be_left_out_with_a_warning(caplog):
    last = ChatTemplate("{{ messages[-1].content }}")
    thinking = ChatTemplate(around("{{ m.content.split('</think>')[-1] }}"))
    with caplog.at_level(logging.WARNING, "ikpy"):
        talk = [*TALK[:2], {"role": "assistant", "content": "<think>1</think>Hello"}, TALK[3]]
        assert thinking.render(talk) == TEXTS and not caplog.records
        for _ in range(2):
            assert last.render(TALK[1:]) == "1+1?"
    assert [record.getMessage() for record in caplog.records] == [
        "the chat template leaves out texts of the role 'user', such as that of message 0",
        "the chat template leaves out texts of the role 'assistant', such as that of message 1",
    ]


def test_a_template_that_refuses_the_words():
    picky = "{% if m.content not in ('a', '1+1?', 'Hello', 'Be brief.') %}{{ raise_exception('no') }}{% endif %}"
    assert render(around(picky + "{{ m.content }}")) == TEXTS
    with pytest.raises(IkpyError, match=r"leaves out the text of message 3 \(role 'user'\)"):
        render(around(picky))


CALLS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "get", "arguments": '{"city": "Pörto", "n": 2}'}},
        {"id": "2", "type": "function", "function": {"name": "get", "arguments": ""}},
    ]},
    {"role": "tool", "tool_call_id": "1", "content": '{"sky": "blue"}'},
]  # fmt: skip
CALL = "{% for c in m.tool_calls or [] %}{% set f = c.function or c %}{{ f.name }}:ARGS;{% endfor %}"
GIVEN = '{"city": "Pörto", "n": 2}'


def as_mappings(messages):
    parse = lambda call: {**call["function"], "arguments": json.loads(call["function"]["arguments"] or "{}")}  # noqa: E731
    return [
        {**m, "tool_calls": [{**c, "function": parse(c)} for c in m["tool_calls"]]} if "tool_calls" in m else m
        for m in messages
    ]


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ("{% for k, v in f.arguments.items() %}{{ k }}={{ v }},{% endfor %}", ("city=Pörto,n=2,", "")),
        ("{% for k, v in f.arguments | items %}{{ k }}={{ v }},{% endfor %}", ("city=Pörto,n=2,", "")),
        ("{% for k, v in f.arguments | dictsort %}{{ k }}={{ v }},{% endfor %}", ("city=Pörto,n=2,", "")),
        ("{% for k in f.arguments %}{{ k }}={{ f.arguments[k] }},{% endfor %}", ("city=Pörto,n=2,", "")),
        ("{% if f.arguments is mapping %}{{ f.arguments | tojson }}{% endif %}", (GIVEN, "{}")),
        ("{{ f.arguments | tojson }}", (GIVEN, "{}")),
        ("{{ {'arguments': f.arguments} | tojson }}", ('{"arguments": ' + GIVEN + "}", '{"arguments": {}}')),
        ("{{ '' + f.arguments }}", (GIVEN, "")),
        ("{{ f.arguments }}", (GIVEN, "")),
        ("{{ f.arguments if f.arguments is string else f.arguments | tojson }}", (GIVEN, "")),
    ],
)
def test_arguments_of_calls(arguments, want):
    text = around(CALL.replace("ARGS", arguments) + "{{ m.content or '' }}")
    wanted = f'[user|Weather?][assistant|get:{want[0]};get:{want[1]};][tool|{{"sky": "blue"}}]'
    assert render(text, CALLS) == wanted
    plain = [{**m, "tool_calls": [c["function"] for c in m["tool_calls"]]} if "tool_calls" in m else m for m in CALLS]
    assert render(text, plain) == wanted
    mappings = as_mappings(CALLS)
    again = render(text, mappings)  # as OpenAI's form, but that an empty text is an empty mapping here
    assert again.replace("{}", "") == wanted.replace("{}", "")
    assert mappings == as_mappings(CALLS) and CALLS[1]["tool_calls"][0]["function"]["arguments"] == GIVEN


def test_arguments_that_are_no_json():
    broken = json.loads(json.dumps(CALLS))
    for text in ("{'a': 1}", "[1]", "3", "[" * 3000):
        broken[1]["tool_calls"][0]["function"]["arguments"] = text
        with pytest.raises(IkpyError, match=r"message 1 calls a tool with the arguments .* a JSON object") as caught:
            render(around(CALL.replace("ARGS", "{{ f.arguments | tojson }}") + "{{ m.content or '' }}"), broken)
        assert "\n" not in str(caught.value)
        assert text in render(around(CALL.replace("ARGS", "{{ f.arguments }}") + "{{ m.content or '' }}"), broken)


def test_a_call_that_is_lost_is_told(caplog):
    with caplog.at_level(logging.WARNING, "ikpy"):
        render(around("{{ m.content or '' }}"), CALLS)
    (record,) = caplog.records
    assert (
        record.getMessage()
        == "the chat template leaves out calls of tools of the role 'assistant', such as that of message 1"
    )


@pytest.mark.parametrize("content", ["{{ m.content }}", "{{ m.content + '' }}", "{{ m.content | trim }}"])
def test_content_that_is_null(content):
    for text in (PARTS.replace("m['content']", "m.content"), content):
        got = render(around(CALL.replace("ARGS", "{{ f.arguments | tojson }}") + text), CALLS)
        assert got == "[user|Weather?][assistant|get:" + GIVEN + ';get:{};][tool|{"sky": "blue"}]'
    none = "{% if m.content is none %}-{% else %}{{ m.content }}{% endif %}"
    assert render(around(none), CALLS[:2]) == "[user|Weather?][assistant|-]"


def test_a_template_that_fails_where_no_message_has_a_text():
    """There is nothing to look for in the prompt then, so a form that does not render has all of it."""
    for content in ("", []):
        with pytest.raises(IkpyError, match="division by zero") as error:
            render("{{ 1 / 0 }}", [{"role": "user", "content": content, "thinking": "x"}])
        assert "\n" not in str(error.value)
