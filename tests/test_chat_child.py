"""Chat templates of strangers run in a process with limits; whatever they do is one line."""

import gc
import json
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ikpy_llm.errors import IkpyError
from ikpy_llm.text.chat import child
from ikpy_llm.text.chat import jinja as chat_jinja
from ikpy_llm.text.chat.chat import ChatTemplate
from ikpy_llm.text.chat.known import HASHES, hash_of, known
from ikpy_llm.text.chat.templates import TEMPLATES

DATA = Path(__file__).parent / "data"
TALK = [{"role": "user", "content": "Hi \ud83d é"}]
BEGIN = "{{ messages[0].content }}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def render():
    """render(text): a conversation through a template of a stranger; no process is left."""
    made = []

    def call(text, messages=TALK, **variables):
        made.append(ChatTemplate(text, "<s>", "</s>", **variables))
        return made[-1].render(messages)

    yield call
    made.clear()
    gc.collect()
    assert not [p for p in psutil.Process().children() if "chat_child" in " ".join(p.cmdline())]


def test_which_templates_are_known():
    golden = json.loads(lzma.decompress((DATA / "chat_templates.json.xz").read_bytes()))
    texts = [*TEMPLATES.values(), *(model["template"] for model in golden.values())]
    assert all(known(text) and known(text + "\n") for text in texts)
    assert not known(BEGIN) and not known("") and not any(known(text + "x") for text in texts)
    assert len(HASHES) > 70 and all(len(text) == len(hash_of("")) == 32 for text in HASHES)


def test_known_templates_start_no_process(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert "Hi" in ChatTemplate(TEMPLATES["chatml"]).render(TALK)


def test_the_same_as_in_this_process(render, monkeypatch):
    text = "{{ bos_token }}{{ x }}{{ tools is none }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    pid = render("{{ x }}" + BEGIN, x=os.getpid())
    assert pid == f"{os.getpid()}Hi \ud83d é"
    want = f"<s>[1, 2.5]Trueuser:{TALK[0]['content']}"
    assert render(text, x=[1, 2.5]) == want
    monkeypatch.setattr(child, "Child", chat_jinja.Program)
    assert render(text, x=[1, 2.5]) == want


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BEGIN + LOOP, "takes longer than 2 s"),
        (BEGIN + "{{ 9**(9**9) }}", "takes longer than 2 s"),
        (BEGIN + "{{ 'a' * 10**9 }}", "more memory than it may"),
        (BEGIN + "{% set x = namespace(t='ab' * 99999) %}{% for i in range(20) %}{% set x.t = x.t + x.t %}{% endfor %}",
            "more memory than it may"),
        (BEGIN + "{{ 'a' * 20000000 }}", "writes 200000.. characters"),
        (BEGIN + "{{ range(10**9) | list }}", "refuses these messages: Range too big"),
        (BEGIN + "{{ raise_exception('no\nwords') }}", "refuses these messages: no words"),
        (BEGIN + "{{ ''.__class__.__mro__ }}", "unsafe"),
        (BEGIN + "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "recursion"),
        (BEGIN + "{{ '%1000000000d' % 1 }}", "more memory than it may"),
        (BEGIN + "{% if %}", "cannot be read"),
        (BEGIN + "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "cannot be read"),
        (BEGIN + "{% if 1 %}" * 500 + "{% endif %}" * 500, "cannot be read"),
        (BEGIN + "{{ x.y.z }}", "'x' is undefined"),
        ("{% for m in messages %}{% endfor %}", "leaves out the text of message 0"),
    ],
    ids=range(15),
)  # fmt: skip
def test_whatever_a_template_does_is_a_sentence(render, text, part):
    start = time.monotonic()
    with pytest.raises(IkpyError, match=part) as caught:
        render(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert time.monotonic() - start < 15


def test_a_process_goes_on_after_a_mistake_and_is_started_anew_after_its_end():
    template = ChatTemplate(BEGIN + "{% if kill %}" + LOOP + "{% endif %}{% if wrong %}{{ 1 / 0 }}{% endif %}")
    assert template.render(TALK) == TALK[0]["content"]
    process = template._program._process
    with pytest.raises(IkpyError, match="division by zero"):
        template.render(TALK, wrong=True)
    assert template.render(TALK) and template._program._process is process
    with pytest.raises(IkpyError, match="longer than 2 s"):
        template.render(TALK, kill=True)
    assert process.returncode is not None
    assert template.render(TALK) and template._program._process is not process
    template._program._process.kill()
    with pytest.raises(IkpyError, match="process ended"):
        template.render(TALK)
    assert template.render(TALK)


def test_the_time_of_all_renderings_counts():
    """A template that is slow in every form of messages is stopped after 2 s, not after 2 s for each."""
    text = BEGIN + LOOP.replace("99999", "99") * 40 + "{{ raise_exception('no') }}"
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    talk = [{"role": "system", "content": "S"}, *TALK, {"role": "assistant", "content": None, "tool_calls": calls}]
    start = time.monotonic()
    with pytest.raises(IkpyError):
        ChatTemplate(text).render(talk)
    assert time.monotonic() - start < 10


def test_variables_that_cannot_be_handed_over(render):
    with pytest.raises(IkpyError, match="variables cannot be handed to its process"):
        render(BEGIN, x=lambda: 1)


def test_without_processes_it_runs_here(render, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert render(BEGIN) == TALK[0]["content"]
    assert "no more processes" in caplog.text and "without limits" in caplog.text


def test_it_ends_with_its_parent():
    code = (
        "from ikpy_llm.text.chat.chat import ChatTemplate\nimport os, time\n"
        "t = ChatTemplate('{{ messages[0].content }}')\nt.render([{'role': 'user', 'content': 'x'}])\n"
        "print(t._program._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
        parent.wait()
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the process of the template goes on")


@pytest.mark.parametrize(
    "text",
    ["{{ x.y.z }}", "{{", "{{ raise_exception('no') }}", LOOP, "{{ 'x' * 99999999 * 99999999 }}"],
    ids=["undefined", "unreadable", "refuses", "slow", "large"],
)
def test_a_template_that_failed_leaves_no_process_and_no_cycle(text):
    """The error that is raised must not be kept by what its own traceback keeps."""
    gc.collect()
    gc.disable()
    try:
        before = len(psutil.Process().children()), psutil.Process().num_fds()
        for _ in range(2):
            template = ChatTemplate(text)
            for _ in range(2):
                with pytest.raises(IkpyError) as error:
                    template.render(TALK)
            del template, error
        assert (len(psutil.Process().children()), psutil.Process().num_fds()) == before
    finally:
        gc.enable()
