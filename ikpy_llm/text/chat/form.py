"""The form of messages that a chat template shows: content as text or parts, arguments of calls as text or mapping.

Templates want different forms, and most write nothing, or something wrong, where they get another one. So forms are
tried on the conversation itself, with words in place of its texts; the first in which all words come out is taken.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ikpy_llm.arguments import as_json, plain
from ikpy_llm.errors import IkpyError, shown

Render = Callable[[list[dict]], str]


@dataclass(frozen=True)
class Form:
    """How a template gets messages. The default: content is text, all else as the caller gave it.

    `parts`: roles whose content is a list of typed parts. `joined`: of one part each. `arguments` of tool
    calls: dict, str, or None as given. `null`: content None stays None, else it is an empty text. `merged`: the system
    text stands in front of the first user text. `system`: the role developer, its newer name, is called so.
    """

    parts: frozenset = frozenset()
    joined: bool = False
    arguments: type | None = None
    null: bool = True
    merged: bool = False
    system: bool = False


@dataclass(frozen=True)
class Word:
    """What stands for one text while forms are tried. `key`: of the arguments of a tool call, else empty."""

    text: str
    key: str
    message: int
    role: str
    needed: bool

    def seen(self, prompt: str) -> bool:
        """Is it in the prompt (in small letters), and not as Python's or JSON's spelling of a form nobody asked for?"""
        if self.key:
            spelled = ("{'" + self.key + "': '" + self.text + "'}", '\\"' + self.key)
        else:
            spelled = (f"'text': '{self.text}",)
        return self.text in prompt and not any(wrong in prompt for wrong in spelled)


def fit(render: Render, messages: list[dict]) -> tuple[str, list[Word]]:
    """The prompt in the form that the template shows, and the words for what it leaves out all the same.

    IkpyError where no form renders, and for a text left out that the template must show: see `_needed`.
    """
    probe, words = _with_words(messages)
    found = _best(render, probe, words)
    if found is None:
        return _without_words(render, messages), []
    form, seen = found
    prompt = render(shaped(messages, form))
    missing = [word for word in words if word not in seen]
    users = [word for word in words if word.role == "user"][-1:]
    for word in (*missing, *users):
        if word.needed and (word in missing or _vanishes(render, messages, form, word, prompt)):
            raise _left_out(word.message, word.role)
    return prompt, missing


def _left_out(message: int, role: str) -> IkpyError:
    return IkpyError(
        f"the chat template leaves out the text of message {message} (role {shown(role)}); it needs another role or "
        "another template (--chat-template)"
    )


def _best(render: Render, probe: list[dict], words: list[Word]) -> tuple[Form, set[Word]] | None:
    """The first form in which all words come out, or that with the most; None if none renders."""
    has_null = any(message["content"] is None for message in probe)
    tried: dict[Form, tuple | None] = {}

    def score(form: Form) -> tuple[int, int, int]:
        """Words seen, needed ones first; then how often it says None, which Jinja writes for a missing content."""
        if form not in tried:
            try:
                prompt = render(shaped(probe, form))
            except IkpyError:
                tried[form] = None
            else:
                small = prompt.lower()
                tried[form] = {word for word in words if word.seen(small)}, -prompt.count("None") * has_null
        if tried[form] is None:
            return -1, -1, 0  # fewer than any form that renders, also where there are no words
        seen, n_null = tried[form]
        return sum(word.needed for word in seen), len(seen), n_null

    def first_good(forms) -> Form | None:
        return next((form for form in forms if score(form)[1:] == (len(words), 0)), None)

    for system, merged in _beginnings(probe):
        forms = list(_forms(probe, system, merged))
        form = first_good(forms) or first_good(_mixed(probe, max(forms, key=score)))
        if form is not None:
            return form, tried[form][0]
    form = max(tried, key=score)  # the first of equals
    return (form, tried[form][0]) if tried[form] is not None else None


def _without_words(render: Render, messages: list[dict]) -> str:
    """For templates that refuse the words: what the first form renders that has the last user text in it."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    # why: of the first, without its traceback, which would hold this frame, and so the template's process
    text, why, rendered = text_of(messages[users[-1]]["content"]).strip() if users else "", "", False
    for form in (form for beginning in _beginnings(messages) for form in _forms(messages, *beginning)):
        try:
            prompt = render(shaped(messages, form))
        except IkpyError as refused:
            why = why or str(refused)
            continue
        if text in prompt:
            return prompt
        rendered = True
    raise _left_out(users[-1], "user") if rendered else IkpyError(why)


def _vanishes(render: Render, messages: list[dict], form: Form, word: Word, prompt: str) -> bool:
    """Is nothing left of a text, although a word in its place is shown? Templates may trim or change texts."""
    if text_of(messages[word.message]["content"]).strip() in prompt:
        return False
    changed = [*messages]
    changed[word.message] = {**messages[word.message], "content": word.text}
    try:
        before, found, after = render(shaped(changed, form)).partition(word.text)
    except IkpyError:
        return False
    if not (found and prompt.startswith(before) and prompt.endswith(after)):
        return False
    return not prompt[len(before) : len(prompt) - len(after)].strip()


def _beginnings(messages: list[dict]) -> Iterator[tuple[bool, bool]]:
    """What to try with system texts: `system` and `merged` of a form."""
    for system in (False, True) if any(message["role"] == "developer" for message in messages) else (False,):
        yield system, False
        if _has_pair(messages, system):
            yield system, True


def _forms(messages: list[dict], system: bool, merged: bool) -> Iterator[Form]:
    """Forms to try in this order; the first is what most templates want."""
    calls = any(True for message in messages for _ in calls_of(message))
    several = any(isinstance(message["content"], list) and len(message["content"]) > 1 for message in messages)
    for null, arguments in itertools.product(
        (True, False) if any(message["content"] is None for message in messages) else (True,),
        (None, dict, str) if calls else (None,),
    ):
        texts = Form(system=system, merged=merged, null=null, arguments=arguments)
        yield texts
        yield replace(texts, parts=_roles(messages))
        if several:
            yield replace(texts, parts=_roles(messages), joined=True)


def _mixed(messages: list[dict], form: Form) -> Iterator[Form]:
    """The same with text for some roles and parts for others."""
    roles = sorted(_roles(messages))[:4]
    for n in range(1, len(roles)):
        for parts in itertools.combinations(roles, n):
            yield replace(form, parts=frozenset(parts), joined=False)


def _roles(messages: list[dict]) -> frozenset:
    return frozenset(message["role"] for message in messages)


def _has_pair(messages: list[dict], system: bool) -> bool:
    """Does the conversation begin with a system text (a developer's, if that is one) and a user text?"""
    names = ("system", "developer") if system else ("system",)
    return len(messages) > 1 and messages[0]["role"] in names and messages[1]["role"] == "user"


def shaped(messages: list[dict], form: Form) -> list[dict]:
    """The messages in this form. IkpyError for arguments that are no JSON object where a mapping is wanted."""
    out = [_shaped(message, i, form) for i, message in enumerate(messages)]
    if not form.merged:
        return out
    both = "\n\n".join(text_of(message["content"]) for message in messages[:2])
    return [_shaped({**messages[1], "content": both}, 1, form), *out[2:]]


def _shaped(message: dict, i: int, form: Form) -> dict:
    content = message["content"]
    if content is None:
        content = None if form.null else ""
    elif message["role"] in form.parts:
        whole = form.joined or not isinstance(content, list)
        content = [{"type": "text", "text": text_of(content)}] if whole else content
    else:
        content = text_of(content)
    role = "system" if form.system and message["role"] == "developer" else message["role"]
    message = {**message, "role": role, "content": content}
    if form.arguments is not None and any(True for _ in calls_of(message)):
        message["tool_calls"] = [
            _with_arguments(call, lambda given: _as(form.arguments, given, i)) for call in message["tool_calls"]
        ]
    return message


def _as(kind: type, arguments, i: int):
    """Arguments of a tool call of message `i` as a text or as a mapping."""
    if kind is str:
        if isinstance(arguments, str):
            return arguments
        return as_json(f"the call of a tool in message {i}", arguments, _dictionary, ascii=False)
    if isinstance(arguments, Mapping):
        return arguments
    try:
        found = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise IkpyError(
            f"message {i} calls a tool with the arguments {shown(arguments)}; the chat template needs a JSON object"
        )
    return found


def _dictionary(value):
    """What JSON has for a value: a dictionary for any mapping, Python's numbers for NumPy's."""
    return dict(value) if isinstance(value, Mapping) else plain(value)


def calls_of(message: dict) -> Iterator[dict]:
    """The dictionaries in a message that have the arguments of a tool call: OpenAI's `function`, or the call itself."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        holder = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(holder, dict) and isinstance(holder.get("arguments"), str | Mapping):
            yield holder


def _with_arguments(call, change: Callable):
    """A tool call with its arguments changed."""
    for holder in calls_of({"tool_calls": [call]}):
        changed = {**holder, "arguments": change(holder["arguments"])}
        return changed if holder is call else {**call, "function": changed}
    return call


def text_of(content) -> str:
    """The text of a message's content."""
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def _with_words(messages: list[dict]) -> tuple[list[dict], list[Word]]:
    """The messages with a word in place of every text and of every call's arguments, and these words."""
    needed, words, out = _needed(messages), [], []

    def word(i: int) -> str:
        words.append(Word(f"ikpy{len(words)}word", "", i, messages[i]["role"], i in needed))
        return words[-1].text

    def arguments(i: int, given):
        new = Word(f"ikpy{len(words)}word", f"ikpy{len(words)}key", i, messages[i]["role"], False)
        words.append(new)
        return json.dumps({new.key: new.text}) if isinstance(given, str) else {new.key: new.text}

    for i, message in enumerate(messages):
        content = message["content"]
        if isinstance(content, list):
            content = [{**part, "text": word(i)} if part["text"].strip() else part for part in content]
        elif content and content.strip():
            content = word(i)
        message = {**message, "content": content}
        if any(True for _ in calls_of(message)):
            message["tool_calls"] = [
                _with_arguments(call, lambda given, i=i: arguments(i, given)) for call in message["tool_calls"]
            ]
        out.append(message)
    return out, words


def _needed(messages: list[dict]) -> set[int]:
    """Messages whose text a template must show: the last of the user and what follows, system texts, tools' results.

    Of earlier turns a template may drop some, and of an assistant's message the text beside its calls; the caller is
    told.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
    found = {i for i, message in enumerate(messages) if i >= last or message["role"] not in ("user", "assistant")}
    return {i for i in found if not any(True for _ in calls_of(messages[i]))}
