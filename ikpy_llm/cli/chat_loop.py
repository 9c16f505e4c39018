"""Conversations on a terminal or through a pipe: with a chat template (-cnv), or as raw text (-i)."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field

from ikpy_llm.cli import console
from ikpy_llm.cli.text import write
from ikpy_llm.errors import IkpyError

HELP = """\
/clear       forget the conversation (a system prompt stays)
/save FILE   write the messages as JSON
/exit        end (so does Ctrl-D); Ctrl-C stops a reply
A line that ends with \\ goes on in the next one; with -mli every line does, and \\ ends the message."""
USER, RESET = "\033[1m\033[32m", "\033[0m"  # as in llama.cpp: what the user writes is bold green


@dataclass
class Talk:
    """How a conversation is held."""

    n_predict: int = -1
    sampling: dict = field(default_factory=dict)  # what Model.sampler takes
    stop: list[str] = field(default_factory=list)
    keep: int | None = None
    show_special: bool = False
    single_turn: bool = False
    multiline: bool = False
    in_prefix: str = ""
    in_suffix: str = ""
    color: bool = False
    simple: bool = False  # no line editing, no colors


class Reader:
    """Messages that the user writes, one per line, or several lines with the rules of HELP."""

    def __init__(self, talk: Talk):
        self.multiline, self.interrupted = talk.multiline, False
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.edit = self.terminal and not talk.simple
        self.color = talk.color and self.edit
        if self.edit:
            with contextlib.suppress(ImportError):  # history and line editing for input()
                import readline  # noqa: F401
        elif hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")

    def read(self) -> str | None:
        """The next message, None at the end of the input (or after Ctrl-C twice)."""
        lines: list[str] = []
        while True:
            try:
                line = self._line("> " if not lines else "... ")
            except KeyboardInterrupt:
                print(file=sys.stderr)
                if self.interrupted or not self.terminal:
                    return None
                self.interrupted = True
                console.note("/exit, Ctrl-D or Ctrl-C again ends")
                lines = []
                continue
            self.interrupted = False
            if line is None:
                return "\n".join(lines) if lines else None
            if not lines and is_command(line):
                return line
            more = line.endswith("\\") != self.multiline
            lines.append(line.removesuffix("\\"))
            if not more:
                return "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        if self.edit:
            try:
                return input(f"\001{USER}\002{prompt}" if self.color else prompt)
            except EOFError:
                return None
            finally:
                if self.color:
                    write(RESET)
        if self.terminal:
            write(prompt)
        line = sys.stdin.readline()
        return line.removesuffix("\n").removesuffix("\r") if line else None


def is_command(text: str) -> bool:
    """Is it one of the commands of HELP, rather than a message that begins with a slash?"""
    word, _, rest = text.strip().partition(" ")
    return (word in ("/clear", "/exit", "/quit", "/help") and not rest) or word == "/save"


def converse(model, conversation, first: str | None, talk: Talk) -> None:
    """Messages and replies until the input ends; `first` is the first message if there is one."""
    reader = Reader(talk)
    start = list(conversation.messages)
    if reader.terminal and not talk.single_turn:
        console.note("/exit, /clear, /save FILE, /help; Ctrl-C stops a reply")
    while True:
        text = reader.read() if first is None else first
        if text is None:
            return
        if first is None and is_command(text):
            if not _command(text.strip(), conversation, start):
                return
            continue
        first = None
        if not text.strip():
            continue
        conversation.messages.append({"role": "user", "content": talk.in_prefix + text + talk.in_suffix})
        _reply(model, conversation, talk, reader.terminal)
        if talk.single_turn:
            return


def _command(text: str, conversation, start: list) -> bool:
    """Run a command; False if the conversation is over."""
    word, _, rest = text.partition(" ")
    if word in ("/exit", "/quit"):
        return False
    if word == "/clear":
        conversation.messages = list(start)
        console.note("the conversation is forgotten")
    elif word == "/save":
        try:
            if not rest.strip():
                raise IkpyError("/save needs the name of a file")
            conversation.save(rest.strip())
            console.note(f"saved in {rest.strip()}")
        except IkpyError as error:
            print(f"error: {error}", file=sys.stderr)
    else:
        print(HELP, file=sys.stderr)
    return True


def _reply(model, conversation, talk: Talk, terminal: bool) -> None:
    """Stream one reply; Ctrl-C ends it, and what does not fit is an error that does not end a session."""
    ends, stops = model.ends(talk.stop)
    try:
        pieces = conversation.reply(
            model.sampler(**talk.sampling),
            n_predict=talk.n_predict,
            stops=stops,
            ends=ends,
            show_special=talk.show_special,
        )
        _show(pieces)
    except IkpyError as error:
        if not terminal or talk.single_turn:
            raise
        if conversation.messages[-1]["role"] == "assistant":
            conversation.messages.pop()
        conversation.messages.pop()
        print(f"error: {error}", file=sys.stderr)
        return
    write("\n")
    if conversation.why == "length" and talk.n_predict < 0:
        console.note("the context is full; /clear makes room, -c sets its size")


def _show(pieces):
    """Write pieces as they come; the value of their generator, None if Ctrl-C ended it."""
    try:
        while True:
            try:
                write(next(pieces))
            except StopIteration as end:
                return end.value
    except KeyboardInterrupt:
        pieces.close()
        return None


def interact(model, prompt: str, talk: Talk, first: bool) -> None:
    """Text that model and user write in turns; the user's turn comes at a stop string, at an end, or after Ctrl-C.

    first: the user writes before the model does.
    """
    reader, sampler = Reader(talk), model.sampler(**talk.sampling)
    ends, stops = model.ends(talk.stop)

    def add(text: str, special: bool = False, begin: bool = False) -> None:
        for token in model.tokenize(text, add_special=begin, parse_special=special):
            sampler.accept(token)

    if prompt:
        add(prompt, special=True, begin=True)
    users = first or not prompt
    while True:
        if not users:
            end = _show(_turn(model, sampler, ends, stops, talk))
            if end is None or talk.single_turn:
                write("\n")
            elif end.stop:
                write(end.stop)
            elif end.why == "eos" and stops:
                write("\n" + stops[0])
                add("\n" + stops[0])
            if talk.single_turn:
                return
        users = False
        line = reader.read()
        if line is None or line.strip() in ("/exit", "/quit"):
            return
        add(talk.in_prefix, special=True, begin=not sampler.history.n)
        add(line + "\n")
        add(talk.in_suffix, special=True)
        write(talk.in_suffix)


def _turn(model, sampler, ends, stops, talk: Talk):
    """The model's turn: the text so far is what the sampler has seen."""
    from ikpy_llm.engine.conversation import shifted

    text = sampler.history.last(-1).tolist()
    while talk.keep is not None and len(text) >= model.n_ctx:
        text = shifted(text, min(max(talk.keep, 0), model.n_ctx // 2))
    return model.stream(
        text,
        sampler,
        n_predict=talk.n_predict,
        ends=ends,
        stops=stops,
        show_special=talk.show_special,
        keep=talk.keep,
    )
