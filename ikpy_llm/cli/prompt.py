"""The texts that a run begins with: prompt, system message, and what the chat template reads besides."""

from __future__ import annotations

import sys

from ikpy_llm.cli import text as texts
from ikpy_llm.cli.text import read_file, read_stdin
from ikpy_llm.errors import IkpyError, shown


def prompt_of(options) -> str | None:
    """The text of -p (with escapes resolved) or of -f (as it is, without the last line end); None without either."""
    if options.prompt is not None and options.file is not None:
        raise IkpyError("-p and -f exclude each other; give -p TEXT or -f FILE")
    if options.file is not None:
        return read_file("-f", options.file, exact=True).removesuffix("\n")
    return None if options.prompt is None else escaped(options, options.prompt)


def piped_prompt() -> str | None:
    """The text that another program writes to stdin, as it is, without the last line end; None where there is none."""
    if sys.stdin.isatty():
        return None
    return read_stdin("a prompt without -p").removesuffix("\n") or None


def system_of(options) -> str | None:
    """The text of -sys (with escapes resolved) or -sysf."""
    if options.system is not None and options.system_file is not None:
        raise IkpyError("-sys and -sysf exclude each other")
    if options.system_file is not None:
        return read_file("-sysf", options.system_file, exact=True).removesuffix("\n")
    return None if options.system is None else escaped(options, options.system)


def escaped(options, text: str) -> str:
    """A text of the command line with its escapes resolved, unless --no-escape."""
    return texts.unescape(text) if options.escape else texts.word(text)


def template_of(options) -> str | None:
    """The text or name of --chat-template, or the text of --chat-template-file."""
    if options.chat_template_file is not None:
        if options.chat_template is not None:
            raise IkpyError("--chat-template and --chat-template-file exclude each other")
        return read_file("--chat-template-file", options.chat_template_file)
    return None if options.chat_template is None else texts.word(options.chat_template)


def template_variables(options) -> dict:
    """What the chat template may read besides the messages."""
    variables = {}
    if options.reasoning_budget > 0:
        raise IkpyError(
            f"--reasoning-budget {options.reasoning_budget}: only 0 (no thoughts) and -1 (no limit) are possible"
        )
    if options.reasoning != "auto" or options.reasoning_budget == 0:
        variables["enable_thinking"] = options.reasoning != "off" and options.reasoning_budget != 0
    if options.chat_template_kwargs is not None:
        given = texts.read_json("--chat-template-kwargs", texts.word(options.chat_template_kwargs))
        if not isinstance(given, dict):
            raise IkpyError(
                f"--chat-template-kwargs is {shown(options.chat_template_kwargs, 300)[1:-1]}; a JSON object is accepted"
            )
        from ikpy_llm.text.chat.chat import checked_variables

        variables |= checked_variables("--chat-template-kwargs", {k: v for k, v in given.items() if k != "tools"})
        variables |= {k: v for k, v in given.items() if k == "tools"}  # which Model.conversation takes
    return variables


def may_chat(options) -> bool:
    """Is somebody at a terminal who gave no text, and has the file a chat template (or do the flags name one)?"""
    if options.conversation is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    if options.chat_template is not None or options.chat_template_file is not None or not options.model:
        return True  # the demo model has one, a file of the hub most likely
    from ikpy_llm.engine.file.gguf import open_gguf
    from ikpy_llm.text.chat.chat import file_templates

    return bool(file_templates(open_gguf(options.model).meta))


def lacks_format(model, tokens: list[int]) -> bool:
    """Is a prompt plain text, without the marks of a chat format, though the model has one?"""
    from ikpy_llm.text.chat.chat import file_templates
    from ikpy_llm.text.vocab.special import CONTROL

    vocab = model.vocab
    marks = {token for token in tokens if token < vocab.n_tokens and vocab.types[token] == CONTROL}
    return not marks - {vocab.bos, vocab.eos} and bool(file_templates(model.meta))


def print_tokens(model, tokens: list[int]) -> None:
    """--verbose-prompt: the tokens that the model is about to read, on stderr, as llama.cpp shows them."""
    print(f"main: number of tokens in prompt = {len(tokens)}", file=sys.stderr)
    for token in tokens:
        print(f"{token:6d} -> {shown(model.detokenize([token], skip_special=False), None)}", file=sys.stderr)
