"""The words of a command line, so that argparse reads them in one way only: that of llama.cpp."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from ikpy_llm.arguments import our_name
from ikpy_llm.cli.ignored import IGNORED, is_refused
from ikpy_llm.errors import IkpyError

MODEL = "-m"
OTHER_NAMES = {"-no-fa": "-fa=off", "--no-flash-attn": "-fa=off", "--usage": "--help"}


def normalize(
    argv: Sequence[str], parser: argparse.ArgumentParser, without_effect: Mapping[str, object] = IGNORED
) -> tuple[list[str], list[str]]:
    """(argv that argparse reads only in one way, flags that were ignored).

    argparse would read `-foo` as `-f oo` and refuse `-p "-x"`; users of llama.cpp mean neither. So names are looked up
    whole, `_` is `-` in long names, a flag that needs a value takes the next word whatever it is, those of
    `without_effect` (name: how many words follow it) are taken out, and a model file needs no -m before it.
    IkpyError for words that mean nothing, and for what ikpy cannot do (see ignored.REFUSED).
    """
    actions, out, positional, ignored, at = parser._option_string_actions, [], [], [], 0
    while at < len(argv):
        name, equals, value = OTHER_NAMES.get(argv[at], argv[at]).partition("=")
        at += 1
        if not (name.startswith("-") and len(name) > 1):
            positional.append(argv[at - 1])  # to the end: argparse wants them side by side
            continue
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name not in actions and name not in without_effect:
            raise IkpyError(f"unknown argument: {name}{_similar(name, actions)} (see {parser.prog} --help)")
        nargs = actions[name].nargs if name in actions else without_effect[name]
        if not equals and (nargs is None or nargs == "?"):
            if at < len(argv) and (nargs is None or not argv[at].startswith("-")):
                equals, value = "=", argv[at]
                at += 1
            elif nargs is None:
                raise IkpyError(f"{name}: a value is missing (see {parser.prog} --help)")
        if name in actions:
            out.append(name + equals + value)
            continue
        while isinstance(nargs, int) and nargs > 0:  # more words of a flag that is ignored
            value, nargs, at = f"{value} {argv[at] if at < len(argv) else ''}".strip(), nargs - 1, at + 1
        ignored.append(f"{name} {value}".strip())
    if refused := [words for words in ignored if is_refused(words)]:
        raise IkpyError(f"{', '.join(refused)}: ikpy cannot do that, and the result would be another one without")
    return _with_models(out, positional, parser), ignored


def _with_models(words: list[str], positional: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Words and positional ones, of which model files become -m FILE."""
    takes_words = any(not action.option_strings for action in parser._actions)
    others = []
    for word in positional:
        if MODEL in parser._option_string_actions and _is_model(word, not takes_words):
            words.append(f"{MODEL}={word}")
        else:
            others.append(word)
    if others and not takes_words:
        raise IkpyError(
            f"unrecognized arguments: {' '.join(others)}: neither a flag nor a model file (see {parser.prog} --help)"
        )
    return words + others


def _is_model(word: str, alone: bool) -> bool:
    """alone: no other words are expected, so any file is one."""
    return word.lower().endswith(".gguf") or (alone and os.path.isfile(word))


def _similar(name: str, actions: Mapping[str, object]) -> str:
    import difflib

    close = [flag for flag, action in actions.items() if action.dest == our_name(name)]
    close = close[-1:] or difflib.get_close_matches(name, actions, n=1)
    return f"; did you mean {close[0]}?" if close else ""
