"""A chat template as a program of Jinja, the way transformers runs it; here, or in a child process."""

from __future__ import annotations

import json

from ikpy_llm.errors import IkpyError

_LINES = 200  # characters of a template's own error message that are repeated


class Program:
    """A template that is rendered in this process."""

    def __init__(self, text: str):
        """IkpyError for what is no Jinja."""
        try:
            self._template = environment().from_string(text)
        except Exception as error:  # of Jinja, and of Python, which compiles what Jinja writes
            line = f" in line {error.lineno}" if getattr(error, "lineno", None) else ""
            raise IkpyError(f"the chat template cannot be read: {_one_line(error)}{line}") from None

    def begin(self) -> None:
        """A new conversation: what limits there are start anew. There are none here."""

    def render(self, values: dict) -> str:
        """The text for these variables; IkpyError for whatever code in the template raises."""
        try:
            return self._template.render(values)
        except MemoryError:
            raise IkpyError("the chat template takes more memory than it may") from None
        except Exception as error:  # it is the template's or the messages' fault
            raise IkpyError(f"the chat template refuses these messages: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LINES else text[:_LINES] + "..."


def environment():
    """What transformers gives to templates; sandboxed, as templates come from files of strangers."""
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model writes, for training; here it is its body."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
