"""Conversations on a terminal or through a pipe: with a chat template (-cnv), or as raw text (-i)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from ikpy_llm.cli import console
from ikpy_llm.cli.chat_input import Reader, is_command
from ikpy_llm.cli.prompt import print_tokens
from ikpy_llm.cli.text import stream, write
from ikpy_llm.errors import IkpyError

HELP = """\
/clear       forget the conversation (a system prompt stays)
/save FILE   write the messages as JSON
/exit        end (so does Ctrl-D); Ctrl-C stops a reply
Pasted text is one message with all its lines. A line that ends with \\ goes on
in the next one; with -mli every line does, and \\ ends the message."""
DROPPED = "stopped; the message is forgotten"


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
    in_prefix_bos: bool = False
    verbose_prompt: bool = False  # show the tokens of the first text
    color: bool = False
    simple: bool = False  # no line editing, no colors

    def reader(self) -> Reader:
        return Reader(self.multiline, self.color, self.simple)


def converse(model, conversation, first: str | None, talk: Talk) -> None:
    """Messages and replies until the input ends; `first` is the first message if there is one."""
    reader = talk.reader()
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
        before = list(conversation.messages)
        conversation.messages.append({"role": "user", "content": talk.in_prefix + text + talk.in_suffix})
        if talk.verbose_prompt and len(before) == len(start):
            print_tokens(model, conversation.tokens()[1])
        _reply(model, conversation, before, talk, reader.terminal)
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
            console.error(str(error))
    else:
        print(HELP, file=sys.stderr)
    return True


def _reply(model, conversation, before: list, talk: Talk, terminal: bool) -> None:
    """Stream one reply; Ctrl-C ends it, and what does not fit is an error that does not end a session.

    A message that could not be read, or was not because of Ctrl-C, is forgotten: the messages are those of `before`.
    """
    try:
        ends, stops = model.ends(talk.stop)
        pieces = conversation.reply(
            model.sampler(**talk.sampling),
            n_predict=talk.n_predict,
            stops=stops,
            ends=ends,
            show_special=talk.show_special,
        )
        stream(model, pieces)
    except IkpyError as error:
        if not terminal or talk.single_turn:
            raise
        conversation.messages = before
        console.error(str(error))
        return
    except KeyboardInterrupt:
        if not terminal or talk.single_turn:
            write("\n")
            raise
        if conversation.messages[-1]["role"] != "assistant":
            conversation.messages = before
            console.note(DROPPED)
            return
    write("\n")
    if conversation.why == "length" and talk.n_predict < 0:
        console.note("the context is full; /clear makes room, -c sets its size")


def interact(model, prompt: str, shown: str, talk: Talk, first: bool) -> None:
    """Text that model and user write in turns; the user's turn comes at a stop string, at an end, or after Ctrl-C.

    shown: the prompt, where it is to be repeated. first: the user writes before the model does.
    """
    reader, sampler = talk.reader(), model.sampler(**talk.sampling)
    ends, stops = model.ends(talk.stop)

    def add(text: str, special: bool = False, begin: bool = False) -> None:
        for token in model.tokenize(text, add_special=begin, parse_special=special):
            sampler.accept(token)

    if prompt:
        add(prompt, special=True, begin=True)
        if talk.verbose_prompt:
            print_tokens(model, sampler.history.last(-1).tolist())
    users, n_read = first or not prompt, 0
    if users:
        write(shown)
    while True:
        if not users:
            n_before = sampler.history.n
            try:
                end = stream(model, _turn(model, sampler, ends, stops, talk), shown)
            except KeyboardInterrupt:
                if not reader.terminal or talk.single_turn:
                    write("\n")
                    raise
                end = None
                if sampler.history.n == n_before:  # nothing is written yet: what has not been read is forgotten
                    sampler.history.n = n_read
                    console.note(DROPPED)
            if end is None or talk.single_turn:
                write("\n")
            elif end.stop:
                write(end.stop)
            elif end.why == "eos" and stops:
                write("\n" + stops[0])
                add("\n" + stops[0])
            n_read = sampler.history.n
            if talk.single_turn:
                return
        users = False
        line = reader.read()
        if line is None or line.strip() in ("/exit", "/quit"):
            return
        begin = not sampler.history.n
        if talk.in_prefix_bos and not begin and model.vocab.bos is not None:
            sampler.accept(model.vocab.bos)
        add(talk.in_prefix, special=True, begin=begin)
        add(line + "\n")
        add(talk.in_suffix, special=True)
        shown = talk.in_suffix


def _turn(model, sampler, ends, stops, talk: Talk):
    """The model's turn: the text so far is what the sampler has seen."""
    from ikpy_llm.engine.step.conversation import shifted

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
