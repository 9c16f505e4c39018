"""Checks what callers hand over, in one place: plain Python values come out, or one sentence says what is accepted.

A NumPy scalar or an array without dimensions (of any library: what has a `shape` of () and an `item()`) counts as the
Python value it holds.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import fields
from inspect import CO_VARARGS, CO_VARKEYWORDS, Parameter, signature
from numbers import Integral, Real
from types import FunctionType, MappingProxyType
from typing import NoReturn, ParamSpec, TypeVar

from ikpy_llm.errors import ArgumentError, shown

P, R, T = ParamSpec("P"), TypeVar("R"), TypeVar("T")

# Our name of an option: what other engines call it.
OTHER_NAMES = {
    "path": "model_path model model_id repo_id filename file",
    "n_ctx": "num_ctx ctx_size context_length context_size max_seq_len max_model_len",
    "threads": "n_threads num_threads num_thread",
    "n_batch": "batch_size",
    "n_ubatch": "ubatch_size micro_batch_size",
    "cache_type_k": "type_k ctk",
    "cache_type_v": "type_v ctv",
    "repack": "rtr run_time_repack",
    "override_kv": "kv_overrides",
    "prompt": "text inputs",
    "n_predict": "max_tokens max_new_tokens max_completion_tokens max_output_tokens max_length num_predict n_tokens",
    "stop": "stop_sequences stop_strings stop_words",
    "json_schema": "response_format guided_json schema format",
    "grammar": "gbnf guided_grammar",
    "keep": "n_keep context_shift",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_last_n last_n_tokens_size",
    "mirostat_ent": "mirostat_tau",
    "mirostat_lr": "mirostat_eta",
    "seed": "random_seed random_state",
    "tools": "functions",
    "template": "chat_template chat_format",
    "template_kwargs": "chat_template_kwargs",
    "add_special": "add_bos add_special_tokens",
    "skip_special": "skip_special_tokens",
    "normalize": "normalize_embeddings",
}
# Options of other engines without a counterpart: what to know instead.
WITHOUT = {
    **dict.fromkeys(("n_gpu_layers", "gpu_layers", "main_gpu", "device"), "everything is computed on the CPU"),
    "verbose": "logging.getLogger('ikpy').setLevel(...) says what is logged",
    "stream": "the text always comes in pieces, and ''.join(...) makes one text of them",
}


def plain(value):
    """A NumPy scalar or an array without dimensions as the Python value it holds; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def refuse(name: str, value, accepted: str) -> NoReturn:
    """The error of an argument: its name, what it is, and what it may be."""
    raise ArgumentError(f"{name} is {shown(value)}; {accepted} is accepted")


def whole(name: str, value, low: int | None = None, high: int | None = None) -> int:
    """`value` as int; ArgumentError unless it is a whole number from `low` to `high`."""
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, Integral) or not _within(int(found), low, high):
        refuse(name, value, "a whole number" + _limits(low, high))
    if int(found).bit_length() > 64:
        refuse(name, value, "a whole number of at most 64 bits")
    return int(found)


def number(name: str, value, low: float | None = None, high: float | None = None) -> float:
    """`value` as float; ArgumentError unless it is a finite number from `low` to `high`."""
    found = plain(value)
    if isinstance(found, Real) and not isinstance(found, bool):
        try:
            found = float(found)
        except OverflowError:
            found = math.inf
        if math.isfinite(found) and _within(found, low, high):
            return found
    refuse(name, value, "a finite number" + _limits(low, high))


def switch(name: str, value) -> bool:
    """`value` as bool; ArgumentError for anything but True and False, which may be written 1 and 0."""
    found = plain(value)
    if not isinstance(found, Integral) or int(found) not in (0, 1):
        refuse(name, value, "True or False")
    return bool(int(found))


def text(name: str, value) -> str:
    """`value` as str; ArgumentError if it is no text."""
    found = plain(value)
    if not isinstance(found, str):
        refuse(name, value, "a text")
    return str.__str__(found)  # of a subclass (NumPy's, an enumeration): the text itself


def texts(name: str, value, accepted: str = "a list of texts") -> tuple[str, ...]:
    """Several texts; ArgumentError for one text and for what is no text."""
    found = items(name, value, accepted)
    if not all(isinstance(item, str) for item in found):
        refuse(name, value, accepted)
    return tuple(str.__str__(item) for item in found)


def items(name: str, value, accepted: str) -> list:
    """The elements of a sequence, made plain; ArgumentError if it is none."""
    if not isinstance(value, (str, bytes, bytearray, Mapping)) and isinstance(value, Iterable):
        try:
            return [plain(item) for item in value]
        except (TypeError, NotImplementedError):  # no dimension, or several of a memoryview
            pass
    refuse(name, value, accepted)


def function(name: str, value) -> Callable:
    """`value`; ArgumentError if it cannot be called."""
    if not callable(value):
        refuse(name, value, "a function")
    return value


def file_path(name: str, value) -> str | os.PathLike:
    """A path as str or as the Path it is; ArgumentError if it is none. Bytes are decoded as the file system's."""
    found = plain(value)
    try:
        written = os.fsencode(found)
    except (TypeError, UnicodeEncodeError):
        refuse(name, value, "the path of a file, a text or a pathlib.Path,")
    if not written or b"\0" in written:
        refuse(name, value, "the path of a file")
    return os.fsdecode(found) if isinstance(os.fspath(found), bytes) else found


def token_ids(name: str, value, n: int | None = None, accepted: str = "a list of token ids") -> list[int]:
    """Token ids, of the `n` there are, from any sequence of whole numbers; ArgumentError if it is none."""
    if type(value) is list and set(map(type, value)) == {int}:
        ids = list(value)
    else:
        ids = items(name, value, accepted)
        if isinstance(value, Set) or any(isinstance(item, bool) or not isinstance(item, Integral) for item in ids):
            refuse(name, value, accepted)
        ids = [int(item) for item in ids]
    if n is not None and ids and not 0 <= min(ids) <= max(ids) < n:
        wrong = next(item for item in ids if not 0 <= item < n)
        raise ArgumentError(f"token id {shown(wrong)}: the vocabulary has ids 0 to {n - 1}")
    return ids


def as_json(name: str, value, other: Callable = plain, ascii: bool = True) -> str:
    """`value` as JSON, NumPy's numbers too; `other` turns what is no JSON into what is; ArgumentError if it cannot."""

    def default(item):
        if (found := other(item)) is item:
            raise TypeError(f"{shown(item)} cannot be written")
        return found

    try:
        return json.dumps(value, default=default, ensure_ascii=ascii)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{name} is no JSON: {' '.join(str(error).split())}") from None


def _within(value, low, high) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _limits(low, high) -> str:
    if low is None:
        return "" if high is None else f" up to {high}"
    return f" from {low} on" if high is None else f" from {low} to {high}"


# What checks an argument, by the text of its annotation; `KIND | None` takes None too.
KINDS: dict[str, Callable[[str, object], object]] = {
    "int": whole,
    "float": number,
    "bool": switch,
    "str": text,
    "Progress": function,
    "Callable[[], None]": function,
}


def of_kind(annotation) -> Callable[[str, object], object] | None:
    """What checks a value with this annotation (a type, or its text); None where nobody here does."""
    kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    check = KINDS.get(kind.removesuffix(" | None"))
    if check is None or not kind.endswith(" | None"):
        return check

    return lambda name, value: None if value is None else check(name, value)


def checks_methods(options: Mapping[str, type] = MappingProxyType({})) -> Callable[[T], T]:
    """Class decorator: `checks_arguments` for every public method. options: name of a `**` parameter -> a dataclass."""

    def decorate(cls: T) -> T:
        for name, member in list(vars(cls).items()):
            call = getattr(member, "__func__", member)  # of a classmethod
            if isinstance(call, FunctionType) and not name.startswith("_"):
                checked = checks_arguments(call, options.get(_rest_of(call)))
                setattr(cls, name, checked if call is member else type(member)(checked))
        return cls

    return decorate


def checks_arguments(call: Callable[P, R], options: type | None = None) -> Callable[P, R]:
    """Decorator: arguments whose annotation is one of KINDS are checked and made plain; a name that the call does not
    have is an ArgumentError that says which was meant.

    options: a dataclass whose fields are what the call's `**` takes, which checks them itself; they become part of the
    signature, so that notebooks complete them. None: a `**` takes any name.
    """
    kinds = {name: of_kind(kind) for name, kind in call.__annotations__.items() if name != "return"}
    checks = {name: check for name, check in kinds.items() if check}

    @functools.wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        form = _signature(checked)
        if options is not None or _rest_of(call) is None:
            for name in kwargs.keys() - form.parameters.keys():
                raise unknown(name, form.parameters, call.__qualname__)
        try:
            bound = form.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{call.__qualname__}: {error}") from None
        for name, value in bound.arguments.items():
            if name in checks:
                bound.arguments[name] = checks[name](name, value)
        return call(*bound.args, **bound.kwargs)

    if options is not None:
        form = signature(call)
        own = [p for p in form.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in fields(options)
        ]
        checked.__signature__ = form.replace(parameters=own + more)
    return checked


_signature = functools.cache(signature)


def _rest_of(call: FunctionType) -> str | None:
    """The name of the parameter with two stars."""
    code = call.__code__
    at = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & CO_VARARGS)
    return code.co_varnames[at] if code.co_flags & CO_VARKEYWORDS else None


def our_name(name: str) -> str:
    """Our name of an option that may be written as other engines, or command lines, do."""
    word = name.lower().strip("-").replace("-", "_")
    known = {other: ours for ours, others in OTHER_NAMES.items() for other in others.split()}
    return known.get(word, word)


def unknown(name: str, names: Iterable[str], where: str) -> ArgumentError:
    """The error of an option that does not exist: which was meant, and which there are."""
    import difflib

    names = [n for n in names if n not in ("self", "cls")]
    word = our_name(name)
    if word in WITHOUT:
        hint = f": {WITHOUT[word]}."
    else:
        near = [word] if word in names else difflib.get_close_matches(word, names, 2, 0.75)
        hint = f": did you mean {' or '.join(near)}?" if near else "."
    return ArgumentError(
        f"there is no option called {shown(name)[1:-1]}{hint} Those of {where} are: {', '.join(names)}"
    )
