"""Flags, each stated once as a dataclass field: argparse parser, --help and environment variables derive from it.

A field's annotation is its type: str, int, float, bool, or a list of one of them for comma lists that may be repeated
(of int also with ranges: 8-32, 8-32+8, 8-32*2); `| None` where there is no default. Files with options do not postpone
annotations: they are read as objects here.
"""

import argparse
import dataclasses
import inspect
import itertools
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

from ikpy_llm.cli.ignored import IGNORED, NOT_YET
from ikpy_llm.cli.words import normalize
from ikpy_llm.errors import IkpyError

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q8_KV", "q6_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")  # of the kernels
KV_NAMES = ", ".join(KV_TYPES)
ON, OFF = ("on", "1", "true", "yes"), ("off", "0", "false", "no")
ENV_PREFIXES = ("IKPY_", "LLAMA_ARG_")
MOST_VALUES = 4096  # of a list of numbers: each is a test or a model to load


class Pair(typing.NamedTuple):
    """Two numbers that belong together, written `512,128`; lists of them are separated by `;`."""

    first: int
    second: int


@dataclasses.dataclass(frozen=True)
class Flag:
    """How a field is written on a command line."""

    names: tuple[str, ...]  # e.g. ("-t", "--threads"); empty for a positional argument
    help: str
    metavar: str | None
    choices: tuple[str, ...]  # accepted values of a str field
    off: tuple[str, ...]  # names that set a bool field to False
    bare: object  # value of the flag when it stands without one; None: it needs a value
    env: str  # IKPY_<env> and LLAMA_ARG_<env> set the default; several names, the first is the one to use; "" for none
    minimum: float | None
    maximum: float | None
    commas: bool  # does a comma in the value of a list divide it?


def flag(
    default,
    *names: str,
    help: str,
    metavar: str | None = None,
    choices: Sequence[str] = (),
    off: Sequence[str] = (),
    bare=None,
    env: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    commas: bool = True,
):
    """A dataclass field that is a flag. `env` is derived from the long name unless given ("" for none)."""
    if env is None:
        env = next((n for n in (*names, *off) if n.startswith("--")), "").strip("-").replace("-", "_").upper()
    spec = Flag(names, help, metavar, tuple(choices), tuple(off), bare, env, minimum, maximum, commas)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"flag": spec})
    return dataclasses.field(default=default, metadata={"flag": spec})


def repack_flag(default, help: str):
    """-rtr, stated once: one value for most commands, a list for the bench."""
    off = ("-no-rtr", "--no-run-time-repack", "-nr", "--no-repack")
    return flag(default, "-rtr", "--run-time-repack", "--repack", off=off, bare=True, env="REPACK", help=help)


def threads_flag(default):
    """-t, stated once."""
    text = "worker threads; 0 or less: automatic (default: physical cores)"
    return flag(default, "-t", "--threads", metavar="N", maximum=1024, help=text)


def threads_batch_flag(default):
    """-tb, stated once."""
    text = "those of prompts; 0 or less: automatic (default: -t)"
    return flag(default, "-tb", "--threads-batch", metavar="N", maximum=1024, help=text)


def automatic(threads: int | None) -> int | None:
    """A number of threads as the engine takes it, for which 0 is not given."""
    return -1 if threads == 0 else threads


def flash_attn_flag(default):
    """-fa, stated once."""
    choices = ("on", "off", "auto", "1", "0")
    text = "fused attention with integer products; off: a plain one in float32, slow, to compare with"
    return flag(default, "-fa", "--flash-attn", choices=choices, bare="on", help=text)


def cache_type_flag(default, side: str, what: str):
    """-ctk and -ctv, stated once."""
    names = f"-ct{side}", f"--cache-type-{side}"
    return flag(
        default, *names, choices=KV_TYPES, metavar="TYPE", help=f"type of the {what} in the KV cache: {KV_NAMES}"
    )


def hadamard_flag(default, side: str, what: str):
    """-khad and -vhad, stated once."""
    text = f"rotate {what} (Hadamard) before they are quantized, which spreads outliers"
    names, env = (f"-{side}had", f"--{side}-cache-hadamard"), f"{side}had {side}_cache_hadamard".upper()
    return flag(default, *names, bare=True, env=env, help=text)


@dataclasses.dataclass
class Common:
    """What every command has."""

    verbose: bool = flag(False, "-v", "--verbose", "--log-verbose", help="log what is done", env="VERBOSE")
    quiet: bool = flag(
        False, "-q", "--quiet", "--log-disable", "--no-log", env="", help="only results and errors, no log and no bars"
    )
    notices: list[str] = dataclasses.field(default_factory=list)  # lines for the user about ignored flags


@dataclasses.dataclass
class ModelOptions(Common):
    """What every command that opens a model has."""

    model: str | None = flag(
        None,
        "-m",
        "--model",
        metavar="FNAME",
        help="GGUF file; of a split model the -00001-of-000NN part; default: the demo model, fetched once",
    )
    hf_repo: str | None = flag(
        None,
        "-hf",
        "-hfr",
        "--hf-repo",
        metavar="USER/REPO[:QUANT]",
        help="model of the Hugging Face hub instead of -m, fetched once (default quant: Q4_K_M)",
    )
    hf_file: str | None = flag(None, "-hff", "--hf-file", metavar="FILE", help="file of the repository of -hf")
    hf_token: str | None = flag(
        None, "-hft", "--hf-token", metavar="TOKEN", env="", help="token for private repositories (default: HF_TOKEN)"
    )
    model_url: str | None = flag(None, "-mu", "--model-url", metavar="URL", help="address of a file of the hub")
    offline: bool = flag(False, "--offline", help="fetch nothing, use what is in the cache")
    threads: int | None = threads_flag(None)
    threads_batch: int | None = threads_batch_flag(None)
    batch: int = flag(
        2048,
        "-b",
        "--batch-size",
        env="BATCH",
        metavar="N",
        minimum=1,
        help="tokens handed to the model at once: matters only below -ub",
    )
    ubatch: int = flag(
        512, "-ub", "--ubatch-size", env="UBATCH", metavar="N", minimum=1, help="tokens computed at once"
    )
    repack: bool | None = repack_flag(
        None,
        "weave weights into panels at load time; off keeps them memory mapped (default: on where memory allows)",
    )
    pp_requant: bool = flag(
        False, "--pp-requant", help="prompts use the matrices requantized to Q8_0: more memory, other rounding"
    )
    cache_type_k: str = cache_type_flag("f16", "k", "keys")
    cache_type_v: str = cache_type_flag("f16", "v", "values")
    khad: bool = hadamard_flag(False, "k", "keys and queries")
    vhad: bool = hadamard_flag(False, "v", "values")
    flash_attn: str = flash_attn_flag("on")
    swa_full: bool = flag(
        False, "--swa-full", help="layers with a sliding window keep all positions: more memory, any text is reused"
    )
    mla: int = flag(
        3,
        "-mla",
        "--mla-use",
        "--mla-attn",
        env="MLA MLA_USE",
        metavar="N",
        minimum=0,
        maximum=3,
        help="DeepSeek's attention: 0 keeps keys and values of all heads, 1 latents to multiply with, 2 latents to "
        "expand, 3 prompts as 2 and tokens as 1",
    )
    amb: int = flag(
        256,
        "-amb",
        "--attention-max-batch",
        "--attn-max-batch",
        env="AMB ATTENTION_MAX_BATCH",
        metavar="MIB",
        minimum=0,
        help="memory for expanding latents: heads are then done in groups; 0 = no limit",
    )
    ser: str = flag(
        "",
        "-ser",
        "--smart-expert-reduction",
        env="SER SMART_EXPERT_REDUCTION",
        metavar="KMIN,T",
        help="after the KMIN best experts of a token only those above T times the best, such as 6,0.5",
    )
    rope_scaling: str | None = flag(
        None,
        "--rope-scaling",
        choices=("none", "linear", "yarn"),
        help="how positions are stretched",
    )
    rope_scale: float | None = flag(
        None, "--rope-scale", metavar="N", minimum=1e-3, help="stretch positions, so the context, by this factor"
    )
    rope_freq_scale: float | None = flag(
        None, "--rope-freq-scale", metavar="N", minimum=1e-6, help="the same as --rope-scale 1/N"
    )
    rope_freq_base: float | None = flag(
        None, "--rope-freq-base", metavar="N", minimum=1.001, help="base of the rotation's frequencies"
    )
    yarn_orig_ctx: int | None = flag(
        None, "--yarn-orig-ctx", metavar="N", minimum=1, help="yarn: context the model was trained for before"
    )
    yarn_ext_factor: float | None = flag(
        None, "--yarn-ext-factor", metavar="N", minimum=-1, help="yarn: share of it (0 = linear, 1 = all)"
    )
    yarn_attn_factor: float | None = flag(
        None,
        "--yarn-attn-factor",
        metavar="N",
        minimum=1e-3,
        help="yarn: factor of q and k, in place of 1 + 0.1 ln(N of --rope-scale)",
    )
    yarn_beta_slow: float | None = flag(
        None, "--yarn-beta-slow", metavar="N", minimum=1e-3, help="yarn: turns below which pairs are stretched fully"
    )
    yarn_beta_fast: float | None = flag(
        None, "--yarn-beta-fast", metavar="N", minimum=1e-3, help="yarn: turns above which they are not stretched"
    )
    override_kv: list[str] = flag(
        [],
        "-okv",
        "--override-kv",
        metavar="KEY=TYPE:VALUE",
        env="",
        commas=False,
        help="metadata in place of the file's, such as llama.rope.freq_base=float:1e6; types: int, float, bool, str",
    )
    cache_list: bool = flag(
        False, "-cl", "--cache-list", env="", help="list the models of the hub that are in the cache, and end"
    )
    list_devices: bool = flag(False, "--list-devices", env="", help="name what ikpy computes on, the CPU, and end")


def flags_of(options: type) -> list[tuple[dataclasses.Field, Flag]]:
    """(field, flag) of every flag of an options class, its own first and the common ones last."""
    found = [(f, f.metadata["flag"]) for f in dataclasses.fields(options) if "flag" in f.metadata]
    own = inspect.get_annotations(options)
    return sorted(found, key=lambda item: item[0].name not in own)


def base_type(field: dataclasses.Field):
    """The annotation without `| None`."""
    if isinstance(field.type, types.UnionType):
        return next(t for t in typing.get_args(field.type) if t is not types.NoneType)
    return field.type


def convert(field: dataclasses.Field, spec: Flag, text: str, name: str):
    """The value of `text` for a field; IkpyError names the flag, the text and what is accepted."""
    kind = base_type(field)
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        parts = [part.strip() for part in text.split(";" if item is Pair else ",")] if spec.commas else [text]
        if item is int:
            return _numbers(spec, parts, name)
        return [_scalar(item, spec, part, name) for part in parts]
    return _scalar(kind, spec, text, name)


def _numbers(spec: Flag, parts: Sequence[str], name: str) -> list[int]:
    """The numbers of a comma list; IkpyError for more than MOST_VALUES."""
    values = list(itertools.islice((v for part in parts for v in _range(spec, part, name)), MOST_VALUES + 1))
    if len(values) > MOST_VALUES:
        text = ",".join(parts)
        example = " (a step makes them fewer: 8-4096+8, 8-4096*2)" * ("-" in text)
        raise IkpyError(
            f"{name}: '{text[:80]}' are more than {MOST_VALUES} numbers; up to so many are accepted{example}"
        )
    return values


def _range(spec: Flag, text: str, name: str) -> Iterator[int]:
    """The numbers of `8`, `8-11` (each), `8-32+8` (every 8th) or `8-32*2` (doubling)."""
    found = re.fullmatch(r"(\d{1,18})-(\d{1,18})(?:([+*])(\d{1,18}))?", text)
    if not found:
        yield _scalar(int, spec, text, name)
        return
    value, last, step = int(found[1]), int(found[2]), int(found[4] or 1)
    if value > last or step < 1 + (found[3] == "*") or (found[3] == "*" and not value):
        raise IkpyError(f"{name}: '{text}' is not a range such as 8-32, 8-32+8 or 8-32*2")
    while value <= last:
        yield _scalar(int, spec, str(value), name)
        value = value * step if found[3] == "*" else value + step


def _scalar(kind: type, spec: Flag, text: str, name: str):
    if kind is str:
        if spec.choices and text not in spec.choices:
            raise IkpyError(f"{name}: '{text}' is not one of {', '.join(spec.choices)}")
        return text
    if kind is bool:
        if text.lower() in ON + OFF:
            return text.lower() in ON
        raise IkpyError(f"{name}: '{text}' is not one of on, off, 1, 0")
    if kind is Pair:
        if re.fullmatch(r"\d+,\d+", text):
            return Pair(*map(int, text.split(",")))
        raise IkpyError(f"{name}: '{text}' is not two whole numbers such as 512,128")
    what = {int: "a whole number", float: "a number"}[kind]
    low, high = spec.minimum, spec.maximum
    if low is not None:
        what += f" from {low:g}" + (f" to {high:g}" if high is not None else " on")
    elif high is not None:
        what += f" up to {high:g}"
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or value != value or (low is not None and value < low) or (high is not None and value > high):
        raise IkpyError(f"{name}: '{text}' is not {what}")
    return value


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file=None):
        """Python's own takes a full disk under stdout for success."""
        print(message, end="", file=file or sys.stderr, flush=True)

    def error(self, message: str):
        raise IkpyError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def _action(field: dataclasses.Field, spec: Flag) -> type[argparse.Action]:
    """The argparse action of a field: it converts the text and reports errors in our words."""
    many = typing.get_origin(base_type(field)) is list
    is_bool = bool in (base_type(field), *typing.get_args(base_type(field)))

    class Store(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):
            given = namespace.__dict__
            if values is None or values == []:
                value = option_string not in spec.off if is_bool else spec.bare
                value = [value] if many else value
            else:
                words = values if isinstance(values, list) else [values]  # a list: positional words
                found = [convert(field, spec, word, option_string or self.dest) for word in words]
                value = [each for part in found for each in part] if many else found[0]
            given[self.dest] = given.get(self.dest, []) + value if many else value

    return Store


def parser_of(options: type, program: str, description: str | None) -> argparse.ArgumentParser:
    """The argparse parser of an options class. It yields what the command line sets; defaults stay in the class."""
    parser = _Parser(
        prog=program,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
    )
    for field, spec in flags_of(options):
        text = spec.help + _default_text(field, spec) + (f" [env IKPY_{spec.env.split()[0]}]" if spec.env else "")
        text = text.replace("%", "%%")  # argparse formats help texts
        action, is_bool = _action(field, spec), base_type(field) is bool
        if not spec.names and not spec.off:
            nargs = "*" if typing.get_origin(base_type(field)) is list else "?"
            parser.add_argument(field.name, nargs=nargs, action=action, help=text, metavar=spec.metavar)
        if spec.names:
            parser.add_argument(
                *spec.names,
                dest=field.name,
                action=action,
                nargs="?" if spec.bare is not None else 0 if is_bool else None,
                metavar=spec.metavar or ("on|off" if is_bool else "|".join(spec.choices) or None),
                help=text,
            )
        if spec.off:
            text = argparse.SUPPRESS if spec.names else text
            parser.add_argument(*spec.off, dest=field.name, action=action, nargs=0, help=text)
    return parser


def _default_text(field: dataclasses.Field, spec: Flag) -> str:
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    if default is None or "default:" in spec.help or (base_type(field) is bool and not spec.bare):
        return ""
    if isinstance(default, list):
        default = ",".join(map(str, default))
    return f" (default: {'on' if default is True else default})" if default != "" else ""


def from_environment(options: type, environ: Mapping[str, str]) -> dict[str, object]:
    """Values of the flags that environment variables set; IKPY_X wins over LLAMA_ARG_X."""
    values = {}
    for field, spec in flags_of(options):
        for name in (prefix + env for env in spec.env.split() for prefix in ENV_PREFIXES):
            text = environ.get(name, "")
            if text:
                value = convert(field, spec, text, name)
                # NO_X=1 sets a field whose only names switch it off, e.g. IKPY_NO_DISPLAY_PROMPT.
                values[field.name] = not value if base_type(field) is bool and not spec.names else value
                break
    return values


def parse(options: type, argv: Sequence[str], program: str, description: str | None = None, environ=os.environ):
    """An instance of `options` from command line, then environment, then defaults. --help prints and exits."""
    parser = parser_of(options, program, description)
    words, ignored = normalize(argv, parser, {**IGNORED, **getattr(options, "WITHOUT_EFFECT", {})})
    given = vars(parser.parse_args(words))
    result = options(**{**from_environment(options, environ), **given})
    missing = [words for words in ignored if words.split(" ")[0] in NOT_YET]
    ignored = [words for words in ignored if words not in missing]
    if ignored:
        result.notices.append(f"ignored, they change nothing in ikpy: {', '.join(ignored)}")
    if missing:
        result.notices.append(f"ignored, ikpy cannot do that, and the text is the same without: {', '.join(missing)}")
    return result
