"""What the Python API says: which name was meant, what is wrong with messages, short reprs, hub ids, typed options."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import tiny_chat
from tiny_chat import CHAT, TEMPLATE

import ikpy_llm
from ikpy_llm import ArgumentError, IkpyError, Model, ModelFileError, arguments
from ikpy_llm.engine.file import hub
from ikpy_llm.sampling import arguments as sampling_arguments
from ikpy_llm.sampling.options import SamplerOptions


@pytest.fixture(scope="module")
def path(folder):
    return tiny_chat.write(folder / "m.gguf")


@pytest.fixture(scope="module")
def model(path):
    with Model.load(path, n_ctx=256, threads=1) as model:
        yield model


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        ("generate", {"max_tokens": 5}, "no option called max_tokens: did you mean n_predict?"),
        ("generate", {"max_new_tokens": 5}, "did you mean n_predict?"),
        ("generate", {"tempp": 3}, "did you mean temp?"),
        ("generate", {"temperature": 3}, "did you mean temp?"),
        ("generate", {"repetition_penalty": 3}, "did you mean repeat_penalty?"),
        ("generate", {"stop_sequences": ["x"]}, "did you mean stop?"),
        ("generate", {"stream": True}, "the text always comes in pieces"),
        ("generate", {"quux": 1}, "no option called quux. Those of Model.generate are: prompt, n_predict, "),
        ("chat", {"max_completion_tokens": 5}, "did you mean n_predict?"),
        ("chat", {"response_format": {}}, "did you mean json_schema?"),
        ("sampler", {"mirostat_tau": 5}, "did you mean mirostat_ent?"),
        ("sampler", {"Top_K": 5}, "did you mean top_k?"),
        ("embed", {"normalise": True}, "did you mean normalize?"),
        ("load", {"n_threads": 2}, "did you mean threads?"),
        ("load", {"num_ctx": 2}, "did you mean n_ctx?"),
        ("load", {"n_gpu_layers": 99}, "everything is computed on the CPU"),
        ("load", {"model_path": "x"}, "did you mean path?"),
    ],
)
def test_a_wrong_name_says_which_was_meant(call, given, message, model):
    good = {"load": ("x.gguf",), "generate": ("AB",), "chat": (CHAT,), "embed": ("AB",), "sampler": ()}[call]
    with pytest.raises(ArgumentError) as error:
        getattr(model, call)(*good, **given)
    assert message in str(error.value)


def test_names_of_other_engines_are_none_of_ours():
    ours = {f.name for f in fields(SamplerOptions)}
    for call in (Model.load, Model.generate, Model.chat, Model.embed, Model.tokenize, Model.detokenize):
        ours |= inspect.signature(call).parameters.keys()
    others = [other for names in arguments.OTHER_NAMES.values() for other in names.split()] + list(arguments.WITHOUT)
    assert arguments.OTHER_NAMES.keys() <= ours and len(others) == len(set(others))
    for call in (Model.load, Model.generate, Model.chat):
        assert not set(others) & inspect.signature(call).parameters.keys()


def test_a_model_is_opened_by_load(path):
    for words, given in ((("x.gguf",), {}), ((path,), {"n_ctx": 5}), ((), {}), (("x", 1, 2, 3, 4), {})):
        with pytest.raises(IkpyError, match=r"Model\.load\('model\.gguf'\)"):
            Model(*words, **given)


# --- chat -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are no messages"),
        ("hello", "messages is 'hello'; a list of dictionaries"),
        ({"role": "user", "content": "x"}, "messages is .*; a list of dictionaries"),
        (["hello"], "message 0 is 'hello'; a dictionary with role and content"),
        ([*CHAT, {"role": "bot", "content": "x"}], "message 1 has the role 'bot'; system, developer, user, assistant"),
        ([{"role": "user"}], r"message 0 \('user'\) has no content"),
        ([{"role": "user", "content": None}], r"message 0 \('user'\) has no content"),
        ([{"role": "user", "content": []}], r"message 0 \('user'\) has no content"),
        ([{"content": "x"}], "message 0 is .*; a dictionary with role and content"),
        ([{"role": "user", "content": 5}], "message 0 has the content 5; text is accepted"),
    ],
)
def test_messages_of_another_form(messages, message, model):
    with pytest.raises(IkpyError, match=message):
        list(model.chat(messages, n_predict=2))
    with pytest.raises(IkpyError, match=message):
        list(model.conversation(messages).reply(model.sampler(), n_predict=2))


def test_roles_of_a_template_and_messages_without_content(model):
    template = TEMPLATE.replace("{{ m.content }}", "{% if m.role == 'bot' %}B{% endif %}{{ m.content or 'C' }}")
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    for one in ({"role": "bot", "content": "x"}, {"role": "tool", "content": "x"}, called, called | {"content": None}):
        list(model.chat([*CHAT, one], template=template, n_predict=2))


@pytest.mark.parametrize("name", ["messages", "tools", "template", "add_generation_prompt"])
def test_variables_that_the_call_itself_gives(name, model):
    with pytest.raises(IkpyError, match=f"template_kwargs has {name}, which the call itself gives"):
        model.chat(CHAT, template_kwargs={name: 1})


# --- shown ----------------------------------------------------------------------------------------------------------


def test_short_reprs(model, path):
    model.meta["tokenizer.ggml.scores"] = [0.5] * 200_000
    try:
        assert f"{path}: llama 'Tiny'" in repr(model) and "n_ctx 256, 1 threads" in repr(model)
        meta = repr(model.meta)
        assert "'general.name': 'Tiny',\n" in meta and "0.5, ... 200000 numbers]" in meta and len(meta) < 3000
    finally:
        del model.meta["tokenizer.ggml.scores"]
    pieces, end = model.generate("AB", n_predict=20, temp=0, ignore_eos=True), None
    while end is None:
        try:
            next(pieces)
        except StopIteration as stopped:
            end = stopped.value
    assert repr(end).startswith("End(why='length', stop=None, ids=[") and repr(end).endswith(", ... 20 tokens])")
    assert repr(type(end)([1, 2], "eos")) == "End(why='eos', stop=None, ids=[1, 2])"
    found = model.perplexity("ABCDEFGH" * 100, n_ctx=4)
    assert (
        repr(found).endswith(f"n_scored={found.n_scored}, running=[{len(found.running)} chunks])")
        and len(repr(found)) < 120
    )
    assert repr(model.timings).startswith("Timings(load ") and repr(model.timings).count("t/s") == 2
    assert repr(model.sampler(temp=0.5, seed=3)) == "Sampler(temp=0.5, seed=3)"
    assert repr(model.session) == f"<Session {path}: llama, position {model.session.position} of 256>"
    assert repr(model.vocab) == f"<Vocab gpt2: {model.n_vocab} tokens, bos None, eos {model.n_vocab - 2}>"
    assert repr(model.session.file).startswith(f"<GGUFFile {path}: ")
    assert repr(model.conversation(CHAT)) == "<Conversation of 1 messages, last reply: none>"
    lines = repr(ikpy_llm.quant_types()).splitlines()
    assert lines[0].split() == ["name", "id", "block", "bytes", "bpw", "panel_bpw"] and max(map(len, lines)) < 60
    assert len(lines) == len(ikpy_llm.quant_types()) + 1


# --- typed options of samplers --------------------------------------------------------------------------------------


def test_typed_options_are_those_of_samplers():
    """The file that editors read has every option, its type and its help; the assertion shows what belongs there."""
    file = Path(sampling_arguments.__file__).read_text(encoding="utf-8")
    types = {"tuple": "Iterable[str]", "Mapping | None": "Mapping[int, float] | None"}
    names = {f.name: getattr(f.type, "__name__", "Mapping | None") for f in fields(SamplerOptions)}
    lines = []
    for f in fields(SamplerOptions):
        kind, help = types.get(names[f.name], names[f.name]), f.metadata["help"]
        lines.append(f'    {f.name}: {kind}\n    """{help[0].upper()}{help[1:]}."""\n')
    assert file.partition("total=False):\n")[2].partition('"""\n')[2].lstrip("\n") == "".join(lines)
    hints = get_type_hints(sampling_arguments.SamplerArguments)
    assert list(hints) == list(names) and not sampling_arguments.SamplerArguments.__required_keys__
    for call in (Model.generate, Model.chat, Model.sampler):
        assert call.__annotations__["sampling"] == "Unpack[SamplerArguments]"
        assert names.keys() <= inspect.signature(call).parameters.keys()  # what notebooks complete


# --- models of the hub ----------------------------------------------------------------------------------------------


@pytest.fixture
def hub_calls(path, monkeypatch):
    """What is asked of a hub that has one model, the tiny one."""
    asked = []
    monkeypatch.setattr(hub, "resolve", lambda name: asked.append(name) or path)
    return asked


@pytest.mark.parametrize("name", ["user/repo", "user/repo-GGUF:Q4_K_M", "u-s_er/re.po:IQ2_XS", "user/x.gguf:Q8_0"])
def test_a_text_that_is_no_file_names_a_model_of_the_hub(name, hub_calls, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Model.load(name, n_ctx=256, threads=1) as model:
        assert hub_calls == [name] and model.path == path


def test_a_file_of_that_name_wins(hub_calls, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "repo").write_bytes(path.read_bytes())
    for name in ("user/repo", b"user/repo", Path("user/repo")):
        Model.load(name, n_ctx=256, threads=1).close()
    assert not hub_calls


@pytest.mark.parametrize(
    "name", ["x.gguf", "user/x.gguf", "./user/repo", "/user/repo", "a/b/c", "user", Path("user/repo")]
)
def test_other_names_are_files(name, hub_calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="No such file"):
        Model.load(name)
    assert not hub_calls


def test_neither_a_file_nor_a_model_of_the_hub(tmp_path, monkeypatch):
    def nothing(name):
        raise IkpyError("the hub has no repository user/repo")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "resolve", nothing)
    with pytest.raises(
        IkpyError, match=r"user/repo is no file here; as a model of the Hugging Face hub: the hub has no"
    ):
        Model.load("user/repo")


def test_the_command_line_takes_files(ikpy, tmp_path):
    done = ikpy("run", "-m", "user/repo", "-p", "x", cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "error: user/repo: No such file or directory"
