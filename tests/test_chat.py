"""Chat templates: what transformers renders, exactly; named ones; mistakes in one line; a sandbox."""

import json
import logging
import lzma
from datetime import datetime
from pathlib import Path

import pytest

from ikpy_llm.errors import IkpyError
from ikpy_llm.text.chat import chat
from ikpy_llm.text.chat.chat import ChatTemplate, template_text
from ikpy_llm.text.chat.templates import TEMPLATES

GOLDEN = json.loads(lzma.decompress((Path(__file__).parent / "data" / "chat_templates.json.xz").read_bytes()))
CASES = [(name, i) for name, model in GOLDEN.items() for i in range(len(model["cases"]))]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "1+1?"},
]
BLANK = [{"role": "user", "content": ""}]  # has no text that a template would have to show


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Templates of strangers have a process of their own (test_chat_child.py), which takes a moment to start."""
    monkeypatch.setattr(chat, "known", lambda text: True)


def render(text, messages=TALK, **values):
    return ChatTemplate(text, "<s>", "</s>").render(messages, **values)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_as_transformers(name, i):
    model = GOLDEN[name]
    case = model["cases"][i]
    special = model["special"]
    template = ChatTemplate(model["template"], special["bos_token"] or "", special["eos_token"] or "")
    got = template.render(case["messages"], tools=case["tools"], add_generation_prompt=case["add_generation_prompt"])
    assert got == case["rendered"]


def test_environment():
    assert render("{{ {'é': '<'} | tojson }}", BLANK) == '{"é": "<"}'
    assert render("{{ [1, {'a': 2}] | tojson(indent=1) }}", BLANK) == json.dumps([1, {"a": 2}], indent=1)
    assert render("{{ strftime_now('%Y') }}", BLANK) == datetime.now().strftime("%Y")
    assert render("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}", BLANK) == "x"
    assert render("  {% if true %}\na\n  {% endif %}\nb", BLANK) == "a\nb"  # trim_blocks, lstrip_blocks
    assert render("{% generation %}a{% endgeneration %}b{{ bos_token }}{{ eos_token }}", BLANK) == "ab<s></s>"
    assert render("{{ enable_thinking }}{{ tools is none }}", BLANK, enable_thinking=False) == "FalseTrue"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{% if %}", "cannot be read"),
        ("{{ raise_exception('no tools\nhere') }}", "no tools here"),
        ("{{ messages[0].missing.deeper }}", "missing"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_mistakes_are_one_line(text, part):
    with pytest.raises(IkpyError, match=part) as caught:
        render(text)
    assert "\n" not in str(caught.value)


def test_messages_are_checked():
    for wrong, part in (
        (["hi"], "message 0 is 'hi'"),
        ([{"content": "x"}], "role"),
        ([{"role": "user", "content": 3}], "content 3"),
        ([{"role": "user", "content": [{"type": "image"}]}], "parts of text"),
    ):
        with pytest.raises(IkpyError, match=part):
            render("{{ messages }}", wrong)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render("{{ messages[0].content }}", parts) == "a\nb"


def test_templates_that_refuse_a_system_message():
    refuse = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    text = "{% for m in messages %}" + refuse + "{{ m.content }}|{% endfor %}"
    assert render(text) == "Be brief.\n\nHi|Hello|1+1?|"
    with pytest.raises(IkpyError, match="no"):
        render(text, TALK[:1])


def test_which_template(caplog):
    meta = {"tokenizer.chat_template": "main", "tokenizer.chat_template.tool_use": "tools"}
    assert template_text(meta) == "main" and template_text(meta, tools=True) == "tools"
    assert template_text(meta, "tool_use") == "tools" and template_text(meta, "{{ x }}") == "{{ x }}"
    assert template_text(meta, "ChatML") == TEMPLATES["chatml"] and template_text(meta, "gemma3") == TEMPLATES["gemma"]
    with pytest.raises(IkpyError, match=r"tool_use.*vicuna"):
        template_text(meta, "bogus")
    with caplog.at_level(logging.WARNING, "ikpy"):
        assert template_text({}) == TEMPLATES["chatml"]
    assert "no chat template" in caplog.text
    assert chat.file_templates({"tokenizer.chat_template": 3, "tokenizer.chat_templates": ["a"]}) == {}


EXPECTED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
    "<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] 1+1? [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\n1+1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n",
    "mistral-v1": "<s> [INST] Be brief.\n\nHi [/INST] Hello</s> [INST] 1+1? [/INST]",
    "mistral-v3": "<s>[INST] Be brief.\n\nHi[/INST] Hello</s>[INST] 1+1?[/INST]",
    "mistral-v7": "<s>[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST] Hi[/INST] Hello</s>[INST] 1+1?[/INST]",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\n1+1?<|end|>\n"
    "<|assistant|>\n",
    "deepseek2": "<s>Be brief.\n\nUser: Hi\n\nAssistant: Hello</s>User: 1+1?\n\nAssistant:",
    "vicuna": "Be brief.\n\nUSER: Hi\nASSISTANT: Hello</s>\nUSER: 1+1?\nASSISTANT:",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates(name):
    got = render(TEMPLATES[name])
    assert got == EXPECTED.get(name, got)
    assert [got.find(m["content"]) for m in TALK] == sorted(got.find(m["content"]) for m in TALK)
    assert all(m["content"] in got for m in TALK)
