"""The flags of samplers and grammars, derived from SamplerOptions; shared by the commands that generate text."""

import dataclasses
import typing

from ikpy_llm.cli.options import flag, flags_of
from ikpy_llm.errors import IkpyError
from ikpy_llm.sampling.options import DIALECTS, PRESETS, SamplerOptions, bias_of, chain_of_letters


def _flag_of(f: dataclasses.Field):
    """A SamplerOptions field as a flag that is None where it is not given."""
    m, names = f.metadata, f.metadata["flags"]
    off = tuple(f"--no-{name.removeprefix('--')}" for name in names) if f.type is bool else ()
    text = m["help"] + (f" (default: {f.default:g})" if f.type is not bool else " (default: off)")
    low = m["low"] if m["low"] is None or f.type is int else float(m["low"])
    return flag(None, *names, metavar=m["metavar"], help=text, off=off, minimum=low, maximum=m["high"])


_FIELDS = [(f.name, f.type | None, _flag_of(f)) for f in dataclasses.fields(SamplerOptions) if f.metadata["flags"]]
_OTHERS = [
    ("samplers", str | None, flag(None, "--samplers", metavar="A;B;C", help="steps of the sampler in order")),
    (
        "sampling_seq",
        str | None,
        flag(None, "--sampling-seq", "--sampler-seq", metavar="LETTERS", help="the same in letters, ik: dkfypmxntw"),
    ),
    (
        "logit_bias",
        list[str],
        flag(
            [],
            "-l",
            "--logit-bias",
            metavar="ID+B",
            env="",
            commas=False,
            help="add B to a token's logit; ID-inf forbids",
        ),
    ),
    (
        "dry_sequence_breaker",
        list[str],
        flag(
            [],
            "--dry-sequence-breaker",
            metavar="TEXT",
            env="",
            commas=False,
            help=r'DRY: text that ends a repetition, none: no such text (default: \n : " *)',
        ),
    ),
    (
        "compat",
        str,
        flag("ik", "--compat", choices=tuple(DIALECTS), help="whose defaults and letters: ik_llama.cpp or llama.cpp"),
    ),
    (
        "preset",
        str | None,
        flag(None, "--preset", choices=tuple(PRESETS), help="defaults of another program for the samplers"),
    ),
    ("grammar", str | None, flag(None, "--grammar", metavar="GBNF", env="", help="grammar that the text follows")),
    ("grammar_file", str | None, flag(None, "--grammar-file", metavar="FNAME", env="", help="the same from a file")),
    (
        "json_schema",
        str | None,
        flag(None, "-j", "--json-schema", metavar="JSON", env="", help="JSON schema that the text follows, {}: any"),
    ),
    (
        "json_schema_file",
        str | None,
        flag(None, "-jf", "--json-schema-file", metavar="FNAME", env="", help="the same from a file"),
    ),
]
SamplerFlags = dataclasses.make_dataclass("SamplerFlags", _FIELDS + _OTHERS)
# All of them and the prompt's, with how many words follow: for commands that have no text.
FLAGS_OF_TEXT = (
    {
        name: 0 if bool in (field.type, *typing.get_args(field.type)) else None
        for field, spec in flags_of(SamplerFlags)
        for name in (*spec.names, *spec.off)
    }
    | {"-p": None, "--prompt": None, "-f": None, "--file": None, "-e": 0, "--ignore-eos": 0, "--keep": None}
    | {
        "--context-shift": 0,
        "--no-context-shift": 0,
        "--prompt-cache": None,
        "--prompt-cache-all": 0,
        "--prompt-cache-ro": 0,
    }
    | dict.fromkeys(
        "--escape --no-escape -cnv --conversation -no-cnv --no-cnv --no-conversation -st --single-turn".split(), 0
    )
    | dict.fromkeys("-i --interactive -if --interactive-first -mli --multiline-input --in-prefix-bos".split(), 0)
    | dict.fromkeys("--no-display-prompt --display-prompt -sp --special --simple-io --verbose-prompt".split(), 0)
    | dict.fromkeys("-sys --system-prompt -sysf --system-prompt-file -r --reverse-prompt --in-prefix".split())
    | dict.fromkeys("--in-suffix --chat-template --chat-template-file --chat-template-kwargs -rea --reasoning".split())
    | {"--reasoning-budget": None, "-co": "?", "--color": "?", "--perf": 0, "--no-perf": 0}
)


def sampling_of(options) -> dict:
    """What Model.sampler and Model.generate take, of the flags that were given."""
    given = {**DIALECTS[options.compat], **(PRESETS[options.preset] if options.preset else {})}
    given |= {name: getattr(options, name) for name, *_ in _FIELDS if getattr(options, name) is not None}
    if options.compat != "ik":
        given["dialect"] = options.compat
    if options.samplers is not None and options.sampling_seq is not None:
        raise IkpyError("--samplers and --sampling-seq exclude each other")
    if options.samplers:
        given["samplers"] = options.samplers
    elif options.sampling_seq:
        given["samplers"] = ";".join(chain_of_letters(options.sampling_seq, options.compat))
    if options.logit_bias:
        given["logit_bias"] = dict(bias_of(text) for text in options.logit_bias)
    if options.dry_sequence_breaker:
        from ikpy_llm.cli.text import unescape

        given["dry_sequence_breakers"] = [unescape(t) for t in options.dry_sequence_breaker if t != "none"]
    return given | _rules(options)


def _rules(options) -> dict:
    from ikpy_llm.cli.text import read_file, word

    found = {
        "--grammar": options.grammar,
        "--grammar-file": options.grammar_file,
        "-j": options.json_schema,
        "-jf": options.json_schema_file,
    }
    names = [name for name, value in found.items() if value is not None]
    if len(names) > 1:
        raise IkpyError(f"{' and '.join(names)} exclude each other")
    if not names:
        return {}
    from ikpy_llm.text.grammar import grammar  # 10 ms of every start

    value = found[names[0]]
    text = read_file(names[0], value) if names[0] in ("--grammar-file", "-jf") else word(value)
    grammar.library()  # say now that it is missing, not when the model is loaded
    return {"grammar" if "grammar" in names[0] else "json_schema": text}
