"""Chat templates: messages to the text a model was trained on, as transformers renders it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cached_property

from ikpy_llm.arguments import items, plain, refuse
from ikpy_llm.errors import ArgumentError, IkpyError, shown
from ikpy_llm.text.chat.form import fit
from ikpy_llm.text.chat.known import known
from ikpy_llm.text.chat.templates import SPELLINGS, TEMPLATES

log = logging.getLogger("ikpy.chat")
KEY = "tokenizer.chat_template"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")  # of OpenAI's API
# Variables of templates that calls give, and the name that Jinja has for the template itself.
RESERVED = {"messages", "tools", "template", "add_generation_prompt", "self"}
INSTEAD = ("tool_calls", "function_call", "reasoning_content", "thinking")  # what a message may have for content
TESTED = {"role", "content", "name", "tool_call_id", *INSTEAD}  # templates ask whether they are there


def file_templates(meta: dict) -> dict[str, str]:
    """The templates of a model file: "" is the main one, others have names such as tool_use."""
    found = {key[len(KEY) + 1 :]: text for key, text in meta.items() if key == KEY or key.startswith(KEY + ".")}
    return {name: text for name, text in found.items() if isinstance(text, str) and text.strip()}


def template_text(meta: dict, wanted: str | None = None, tools: bool = False) -> str:
    """The Jinja text to use: `wanted` is a name (of the file's templates, or a known one), Jinja itself, or None.

    Without a wish it is the file's (its variant tool_use where there are tools), or chatml with a warning.
    """
    found = file_templates(meta)
    if wanted is None:
        if tools and "tool_use" in found:
            return found["tool_use"]
        if not found:
            log.warning("the model file has no chat template: using chatml (--chat-template NAME|JINJA|FILE to choose)")
            return TEMPLATES["chatml"]
        return found.get("") or found.get("default") or next(iter(found.values()))
    if "{{" in wanted or "{%" in wanted:
        return wanted
    name = wanted.strip().lower()
    if name in found:
        return found[name]
    if SPELLINGS.get(name, name) in TEMPLATES:
        return TEMPLATES[SPELLINGS.get(name, name)]
    known = sorted({*filter(None, found), *TEMPLATES})
    raise IkpyError(f"chat template {shown(wanted)} is neither Jinja nor a known name; there are: {', '.join(known)}")


class ChatTemplate:
    """One template. `text`: its Jinja; `bos`, `eos`: texts of these tokens, which templates write themselves."""

    def __init__(self, text: str, bos: str = "", eos: str = "", **variables):
        self.text, self.variables = text, {"bos_token": bos, "eos_token": eos, **variables}
        self._told: set[str] = set()  # what it leaves out

    @cached_property
    def _program(self):
        """What renders it: here if it is known, else in a process with limits, as it comes from a stranger."""
        if known(self.text):
            from ikpy_llm.text.chat.jinja import Program

            return Program(self.text)
        from ikpy_llm.text.chat.child import Child

        return Child(self.text)

    def render(self, messages, *, tools=None, add_generation_prompt: bool = True, **variables) -> str:
        """The text of a conversation; `messages` as in OpenAI's API. IkpyError, one line, for what goes wrong.

        A text that is not in it is an error, or a warning where a template may leave it out: see text.chat.form.
        """
        messages = checked(messages)
        _check_roles(messages, self.text)
        given = {"documents": None, **self.variables, **variables}
        given |= {"tools": tools, "add_generation_prompt": add_generation_prompt}
        program = self._program
        program.begin()
        prompt, missing = fit(lambda shaped: program.render({**given, "messages": shaped}), messages)
        for word in missing:
            what = f"{'calls of tools' if word.key else 'texts'} of the role {shown(word.role)}"
            if what not in self._told:
                self._told.add(what)
                log.warning("the chat template leaves out %s, such as that of message %d", what, word.message)
        return prompt


def chat_template(meta: dict, vocab, wanted: str | None = None, tools: bool = False, **variables) -> ChatTemplate:
    """The template of a model, or `wanted` instead (see template_text)."""

    def text(token) -> str:
        return "" if token is None else vocab.token_bytes(token, False).decode("utf-8", "replace")

    return ChatTemplate(template_text(meta, wanted, tools), text(vocab.bos), text(vocab.eos), **variables)


def checked(messages) -> list[dict]:
    """The messages as dictionaries with text or parts of text as content; IkpyError where they are something else."""
    out = []
    for i, given in enumerate(items("messages", messages, "a list of dictionaries with role and content")):
        message = {key: _value(i, key, given[key]) for key in given} if isinstance(given, Mapping) else {}
        if not isinstance(message.get("role"), str):
            raise ArgumentError(f"message {i} is {shown(given)}; a dictionary with role and content is accepted")
        content = message.get("content")
        empty = content is None or (isinstance(content, list) and not content)
        if empty and not any(message.get(key) for key in INSTEAD):
            raise ArgumentError(
                f"message {i} ({shown(message['role'])}) has no content; a text or a list of parts is accepted"
            )
        if isinstance(content, list):  # parts, as OpenAI's API has them
            parts = [part if isinstance(part, dict) else {} for part in content]
            texts = [plain(part.get("text")) for part in parts]
            for part, text in zip(content, texts, strict=True):
                if not isinstance(text, str):
                    raise ArgumentError(f"message {i} has a part {shown(part)}; parts of text are accepted")
            pairs = zip(parts, texts, strict=True)
            content = [{**part, "type": "text", "text": str.__str__(text)} for part, text in pairs]
        elif content is not None and not isinstance(content, str):
            raise ArgumentError(f"message {i} has the content {shown(content)}; text is accepted")
        out.append({**message, "content": content} if "content" in message else {**message, "content": ""})
    return out


def _value(i: int, key, value):
    """What message `i` has under a key, plain; ArgumentError for an array, or what else has no truth value, if it is
    one of those that are tested."""
    value = plain(value)
    if not isinstance(key, str) or key not in TESTED:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    try:
        if isinstance(value, list):
            return list(value)  # a subclass may refuse to be compared
        good = bool(value) in (True, False) and not hasattr(value, "shape")
    except Exception:  # of whatever class the value has
        good = False
    if not good:
        accepted = "text is" if key in ("role", "content") else "text, lists and dictionaries are"
        raise ArgumentError(f"message {i} has the {key} {shown(value)}; {accepted} accepted")
    return value


def begun(messages: list[dict]) -> list[dict]:
    """`messages`; IkpyError where there are none to reply to."""
    if not messages:
        raise IkpyError("there are no messages; a list that ends with one of the user is accepted")
    return messages


def checked_tools(tools):
    """Descriptions of tools; IkpyError if they are none."""
    if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(t, Mapping) for t in tools)):
        refuse("tools", tools, "a list of dictionaries, as in OpenAI's API,")
    return tools if tools is None else list(tools)


def checked_variables(name: str, variables) -> dict:
    """What a template may read besides the messages; IkpyError for names that the call itself gives."""
    names = [] if variables is None else variables
    if not isinstance(variables, Mapping | None) or not all(isinstance(key, str) for key in names):
        refuse(name, variables, "a dictionary with names as keys")
    if taken := RESERVED & {*names}:
        raise IkpyError(
            f"{name} has {min(taken)}, which the call itself gives to the template; other names are accepted"
        )
    return {} if variables is None else dict(variables)


def _check_roles(messages: list[dict], template: str) -> None:
    """IkpyError for a role that neither OpenAI's API has nor the template names in quotes."""
    for i, role in enumerate(message["role"] for message in messages):
        if role not in ROLES and not re.search(rf"""(['"]){re.escape(role)}\1""", template):
            known = ", ".join(ROLES)
            raise IkpyError(f"message {i} has the role {shown(role)}; {known} are accepted, and those of the template")
