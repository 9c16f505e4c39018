"""What is given beats the environment, and that beats the default: every option of every command and of Model.load."""

import dataclasses
import inspect

import pytest

from ikpy_llm import api
from ikpy_llm.cli.commands import bench, kernels, run, sweep_bench
from ikpy_llm.cli.options import Pair, base_type, flags_of, parse
from ikpy_llm.engine.options import Options, options_of

COMMANDS = {command.__name__.rpartition(".")[2]: command.Options for command in (run, bench, sweep_bench, kernels)}


def two_values(field, spec) -> tuple[str, str] | None:
    """Two texts that a flag takes and that mean different values, neither of them the default."""
    kind = base_type(field)
    kind = kind.__args__[0] if hasattr(kind, "__args__") else kind
    if spec.choices:
        others = [c for c in spec.choices if c not in ("", str(field.default), "1", "0")]
        return (others[0], others[1]) if len(others) > 1 else None
    if kind is Pair:
        return "512,8", "256,4"
    if kind is str:
        return "a=int:1", "b=int:2"
    if kind is bool:
        return "on", "off"
    low = 1 if spec.minimum is None else spec.minimum + 1
    high = low + 1 if spec.maximum is None else min(low + 1, spec.maximum)
    return (f"{low:g}", f"{high:g}") if low != high else None


CASES = [
    pytest.param(name, field, spec, id=f"{name}-{field.name}")
    for name, options in COMMANDS.items()
    for field, spec in flags_of(options)
    if spec.env and spec.names and two_values(field, spec)
]


@pytest.mark.parametrize(("command", "field", "spec"), CASES)
def test_a_flag_beats_its_variables(command, field, spec):
    options, (one, other) = COMMANDS[command], two_values(field, spec)

    def value(*words, **environ):
        return getattr(parse(options, list(words), "ikpy", environ=environ), field.name)

    takes_text = spec.bare is not None or bool not in (base_type(field), *getattr(base_type(field), "__args__", ()))
    given = (spec.names[-1], one) if takes_text else spec.names[-1:]  # a switch without a value is the first of both
    for variable in (prefix + name for name in spec.env.split() for prefix in ("IKPY_", "LLAMA_ARG_")):
        told = value(**{variable: other})
        assert value(*given, **{variable: other}) == value(*given) != told
        assert value(**{variable: one}) == value(*given)


FIELDS = {f.name: f for f in dataclasses.fields(Options) if f.metadata["env"]}
OTHER = {  # a value that is not the default, as text and as it is taken
    "threads": ("3", 3), "threads_batch": ("3", 3), "repack": ("off", False), "pp_requant": ("on", True),
    "pin": ("off", False), "cache_type_k": ("q4_0", "q4_0"), "cache_type_v": ("q8_0", "q8_0"), "khad": ("1", True),
    "vhad": ("1", True), "flash_attn": ("0", False), "swa_full": ("on", True), "mla": ("1", 1), "amb": ("7", 7),
    "ser": ("3,0.5", "3,0.5"), "no_fusion": ("all", "all"), "check": ("1", True),
}  # fmt: skip
DEFAULTS = {"threads": 2, "threads_batch": 4, "repack": True, "pin": True}  # given where the default is not given


@pytest.fixture
def variables(monkeypatch):
    for f in FIELDS.values():
        monkeypatch.delenv(f.metadata["env"], raising=False)
    return monkeypatch


@pytest.mark.parametrize("name", FIELDS)
def test_an_option_beats_its_variable(variables, name):
    field, (text, value) = FIELDS[name], OTHER[name]
    assert getattr(options_of(), name) == field.default != value
    variables.setenv(field.metadata["env"], text)
    assert getattr(options_of(), name) == value
    assert getattr(options_of(**{name: None}), name) == value
    given = DEFAULTS.get(name, field.default)
    assert getattr(options_of(**{name: given}), name) == given
    assert getattr(Options(**{name: given}), name) == given
    assert getattr(Options(), name) == field.default


def test_the_engine_reads_no_environment(variables):
    variables.setenv("IKPY_MLA", "1")
    variables.setenv("IKPY_FLASH_ATTN", "0")
    variables.setenv("IKPY_CACHE_TYPE_K", "q4_0")
    options = Options(mla=3, flash_attn=True, cache_type_k="f16")
    assert (options.mla, options.flash_attn, options.cache_type_k) == (3, True, "f16")


def test_threads_that_are_given_as_automatic(variables):
    variables.setenv("IKPY_THREADS", "3")
    assert options_of(threads=0).threads == 3
    assert options_of(threads=-1).threads == 0


class Taken(Exception):
    """Carries the options that a session would get."""


@pytest.fixture
def taken(variables, monkeypatch, tmp_path):
    """options that Model.load(...) or a command gives to the engine, of a file that nobody reads"""

    class File:
        meta, path, tensors = {"general.architecture": "llama"}, tmp_path / "m.gguf", {}

    def session(file, build, options, progress=None):
        raise Taken(options)

    File.path.write_bytes(b"")
    monkeypatch.setattr("ikpy_llm.engine.file.gguf.open_gguf", lambda path: File())
    monkeypatch.setattr(api, "open_gguf", lambda path: File())
    monkeypatch.setattr("ikpy_llm.text.vocab.special_ids.warn", lambda *_: None)
    monkeypatch.setattr(api, "Session", session)
    monkeypatch.setattr("ikpy_llm.engine.step.session.Session", session)

    def call(fn, *words, **given):
        with pytest.raises(Taken) as error:
            fn(*words, **given)
        return error.value.args[0]

    call.path = File.path
    return call


LOADED = [name for name in inspect.signature(api.Model.load).parameters if name in FIELDS]


@pytest.mark.parametrize("name", LOADED)
def test_an_argument_of_load_beats_its_variable(taken, variables, name):
    field, (text, value) = FIELDS[name], OTHER[name]
    assert getattr(taken(api.Model.load, taken.path), name) == field.default
    variables.setenv(field.metadata["env"], text)
    assert getattr(taken(api.Model.load, taken.path), name) == value
    given = DEFAULTS.get(name, field.default)
    assert getattr(taken(api.Model.load, taken.path, **{name: given}), name) == given


@pytest.mark.parametrize("command", [run, sweep_bench], ids=lambda c: c.__name__.rpartition(".")[2])
@pytest.mark.parametrize("name", [name for name in LOADED if name != "repack"])
def test_a_flag_beats_the_variable_of_the_engine(taken, variables, command, name):
    field, (text, value) = FIELDS[name], OTHER[name]
    spec = next(spec for f, spec in flags_of(command.Options) if f.name == name)
    variables.setenv(field.metadata["env"], text)

    def options(*words):
        return taken(command.main, parse(command.Options, ["-m", str(taken.path), *TEXT[command], *words], "ikpy"))

    assert getattr(options(), name) == value
    given = DEFAULTS.get(name, field.default)
    text = {True: "on", False: "off"}.get(given, str(given))
    if field.type == "bool" and given is False:
        return  # such a flag has no form that switches it off, but the variable
    assert getattr(options(spec.names[0], text), name) == given


TEXT = {run: ["-p", "x"], sweep_bench: []}


def test_every_option_is_tried():
    assert FIELDS.keys() == OTHER.keys()
