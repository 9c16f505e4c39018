"""Arguments of the Python API: NumPy's numbers count as numbers, and every wrong call is one line, never a traceback.

The wrong calls are generated: every parameter of every call gets every value of VALUES.
"""

import datetime
import decimal
import fractions
import inspect
import math
import pathlib
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import tiny_chat
from tiny_chat import CHAT

import ikpy_llm
from ikpy_llm import ArgumentError, IkpyError, Model, arguments
from ikpy_llm.sampling.options import SamplerOptions

MATRIX = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float16)
X = np.ones((2, 32), np.float32)
VALUES = [
    *(None, True, np.True_, 0, 1, -1, -2, -3, 2**31, -(2**31), 2**63, -(2**63), 10**30, np.int32(3), np.uint8(1)),
    *(
        np.int64(-5),
        np.uint64(2**64 - 1),
        0.0,
        0.5,
        1.5,
        -0.5,
        1e-320,
        1e38,
        1e300,
        -1e300,
        math.nan,
        math.inf,
        -math.inf,
    ),
    *(np.float32(0.5), np.float16(2), np.float64("nan"), np.longdouble("1e4000"), 1j, np.complex64(1), 10**5000),
    *(
        "",
        "x",
        "top_k;temperature",
        "a\0b",
        "\ud800",
        "é" * 300,
        np.str_("x"),
        b"",
        b"x",
        bytearray(b"x"),
        memoryview(b"xy"),
    ),
    *(
        [],
        [1],
        [-1],
        [2**63],
        [1.5],
        [None],
        ["a"],
        ["a", b"b"],
        [[1], [1, 2]],
        (1, 2),
        {},
        {"a": 1},
        {1: 2},
        {1: math.nan},
    ),
    *(
        {1: 2**70},
        {2**70: 1},
        {1},
        frozenset(),
        range(3),
        iter([1, 2]),
        (1 for _ in range(2)),
        [{}],
        [{"role": "user"}],
    ),
    *([{"role": "bot", "content": "x"}], [{"role": "user", "content": 5}], [{"role": "user", "content": []}]),
    *(
        np.array(3),
        np.array(2.5),
        np.array("x"),
        np.array(True),
        np.array(1j),
        np.array([1, 2]),
        np.array([[1, 2], [3, 4]]),
    ),
    *(
        np.array([]),
        np.array(["a"]),
        np.array([1 + 2j]),
        np.array([None, object()]),
        np.array([1.5]),
        np.array([2**63]),
    ),
    *(np.ma.array([1, 2], mask=[0, 1]), np.zeros((0, 3)), np.datetime64("2020"), memoryview(np.zeros((4, 4)))[::2]),
    *(object(), int, len, lambda *a: None, pathlib.Path("missing/x"), decimal.Decimal("0.5"), fractions.Fraction(1, 2)),
    *(datetime.date(2020, 1, 1), NotImplemented, Ellipsis),
]


class Odd:
    """An object that cannot be shown, and whose conversions fail."""

    def __repr__(self):
        raise RuntimeError("no")

    def __array__(self, *_, **__):
        raise RuntimeError("no")


VALUES.append(Odd())
LOOP: list = []
LOOP.append(LOOP)
VALUES += [LOOP, {"a": LOOP}]


@pytest.fixture(scope="module")
def path(folder):
    return tiny_chat.write(folder / "m.gguf")


@pytest.fixture(scope="module")
def model(path):
    with Model.load(path, n_ctx=256, threads=1) as model:
        yield model


def load(*words, **options):
    Model.load(*words, **options).close()


def anew(model, call):
    """The call of a session that has two tokens."""

    def made(*words, **given):
        model.session.rewind(0)
        model.session.eval([1, 2])
        return call(*words, **given)

    return made


def defaults(call) -> dict:
    """Parameters of a call that have a default."""
    return {p.name: p.default for p in inspect.signature(call).parameters.values() if p.default is not p.empty}


def calls(model, path, folder) -> dict:
    """Name of a call -> what makes it, and arguments that it takes."""
    reply = {"sampler": model.sampler(temp=0), "n_predict": 2, "stops": (), "ends": None, "show_special": False}
    quantized = {"data": MATRIX.tobytes(), "type_name": "F16", "shape": (4, 32)}
    generated = {"n_predict": 2, "stop": "x", "grammar": None, "json_schema": None, "ignore_eos": True}
    chat = {"tools": None, "template": None, "template_kwargs": None}
    shown = {"parse_special": False, "show_special": False, "keep": None}
    return {
        "Model": (Model, defaults(Model)),
        "Model.load": (load, defaults(Model.load) | {"path": path, "n_ctx": 256, "threads": 1}),
        "tokenize": (model.tokenize, {"text": "AB", "add_special": True, "parse_special": False}),
        "detokenize": (model.detokenize, {"ids": [1, 2], "skip_special": True}),
        "logits": (model.logits, {"tokens": [1, 2]}),
        "embed": (model.embed, {"text": "AB", "pooling": None, "normalize": True}),
        "perplexity": (model.perplexity, {"text": "ABCDEFGH" * 3, "n_ctx": 4, "n_chunks": -1, "progress": None}),
        "sampler": (model.sampler, {"grammar": None, "json_schema": None, "ignore_eos": False}),
        "generate": (model.generate, {"prompt": "AB"} | generated | shown),
        "chat": (model.chat, {"messages": CHAT} | generated | chat),
        "stream": (model.stream, {"tokens": [1, 2]} | reply | {"keep": None}),
        "ends": (model.ends, {"stop": "x"}),
        "conversation": (model.conversation, {"messages": CHAT, "template": None, "tools": None}),
        "reply": (lambda *w, **a: model.conversation(CHAT).reply(*w, **a), reply),
        "save": (model.conversation(CHAT).save, {"path": folder / "messages.json"}),
        "after_prompt": (model.after_prompt, {"call": lambda: None}),
        "save_session": (model.save_session, {"path": folder / "s"}),
        "load_session": (model.load_session, {"path": folder / "s"}),
        "session.eval": (anew(model, model._session.eval), {"tokens": [1], "all_logits": False}),
        "session.rewind": (anew(model, model._session.rewind), {"position": 1}),
        "Sampler.sample": (model.sampler().sample, {"logits": np.zeros(model.n_vocab, np.float32)}),
        "Sampler.accept": (model.sampler().accept, {"token": 1}),
        "dequantize": (ikpy_llm.dequantize, quantized),
        "matmul": (ikpy_llm.matmul, quantized | {"x": X}),
        "quant_types": (ikpy_llm.quant_types, {}),
    }  # fmt: skip


NAMES = (
    "Model Model.load tokenize detokenize logits embed perplexity sampler generate chat stream ends conversation reply "
    "save after_prompt save_session load_session session.eval session.rewind Sampler.sample Sampler.accept dequantize "
    "matmul quant_types"
).split()
HOT = (
    "session.eval",
    "session.rewind",
    "Sampler.sample",
    "Sampler.accept",
)  # called for every token: Python's own check of names


def outcome(call, given: dict):
    """What a call returns, its pieces joined, or the IkpyError it raises; anything else fails the test."""
    try:
        found = call(**given)
        return "".join(found) if inspect.isgenerator(found) else found
    except IkpyError as error:
        text = str(error)
        assert text.isprintable() and 10 < len(text) < 1500, text
        return error


@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_are_one_line(name, model, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    "".join(model.generate("AB", n_predict=1, temp=0))
    model.save_session(tmp_path / "s")
    call, good = calls(model, path, tmp_path)[name]
    assert name == "Model" or not isinstance(outcome(call, good), IkpyError), outcome(call, good)
    failed = []
    for key in good:
        for value in VALUES:
            if key == "progress" and callable(value):
                continue
            try:
                outcome(call, good | {key: value})
            except Exception as error:
                failed.append(f"{name}({key}={arguments.shown(value)}): {type(error).__name__}: {error}")
    for words in ([1] * 30, *([value] for value in VALUES)):
        for given in ({}, {"bogus": 1}, {"\n": 1}) if name not in HOT else ():
            try:
                call(*words, **given)
            except IkpyError as error:
                assert str(error).isprintable()
            except Exception as error:
                failed.append(f"{name}(*{arguments.shown(words)}, **{given}): {type(error).__name__}: {error}")
    model.after_prompt(lambda: None)
    assert not failed, "\n".join(failed[:40])


def fits(kind: str, value) -> bool:
    """Is a value of the kind that an annotation names?"""
    if kind.endswith(" | None") and value is None:
        return True
    value = value.item() if isinstance(value, np.generic | np.ndarray) and value.shape == () else value
    match kind.removesuffix(" | None"):
        case "int":
            return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64
        case "float":
            return (
                isinstance(value, (int, float, fractions.Fraction))
                and not isinstance(value, bool)
                and abs(value) < 1e308
            )
        case "bool":
            return isinstance(value, int) and value in (0, 1)
        case "str":
            return isinstance(value, str)
        case "Progress" | "Callable[[], None]":
            return callable(value)
    return True


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HOT and name != "Model"])
def test_values_of_another_kind_are_refused(name, model, path, tmp_path):
    call, good = calls(model, path, tmp_path)[name]
    where = {"Model.load": Model.load, "reply": model.conversation(CHAT).reply}.get(name, call)
    kinds = {p.name: p.annotation for p in inspect.signature(where).parameters.values()}
    for key in good:
        for value in (v for v in VALUES if isinstance(kinds[key], str) and not fits(kinds[key], v)):
            error = outcome(call, good | {key: value})
            assert isinstance(error, ArgumentError) and key in str(error), (key, value)


@pytest.mark.parametrize("field", fields(SamplerOptions), ids=lambda f: f.name)
def test_options_of_samplers(field, model):
    """A value is refused in a line that names the option, or a text can be generated with it."""
    for value in VALUES:
        found = outcome(model.generate, {"prompt": "AB", "n_predict": 3, "ignore_eos": True, field.name: value})
        kind = getattr(field.type, "__name__", "")
        if not fits(kind, value):
            assert isinstance(found, ArgumentError), (field.name, value)
        assert not isinstance(found, IkpyError) or field.name in str(found), found


# --- NumPy's numbers ------------------------------------------------------------------------------------------------


INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.array)


def written(model, **options):
    return "".join(model.generate("AB", n_predict=20, **options))


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda k: k.__name__)
def test_numpy_integers_are_numbers(kind, model, path):
    assert written(model, seed=kind(42), top_k=kind(7), ignore_eos=True) == written(
        model, seed=42, top_k=7, ignore_eos=True
    )
    assert "".join(model.generate([kind(1), kind(2)], n_predict=kind(4), temp=0)) == "".join(
        model.generate([1, 2], n_predict=4, temp=0)
    )
    np.testing.assert_array_equal(model.logits([kind(1), 2]), model.logits([1, 2]))
    assert model.detokenize([kind(1), kind(2)]) == model.detokenize([1, 2])
    assert model.sampler(logit_bias={int(kind(3)): kind(2)}).options.logit_bias == {3: 2.0}
    with Model.load(
        path, n_ctx=kind(100), n_ubatch=kind(64), threads=kind(1), override_kv={"rope.freq_base": kind(100)}
    ) as other:
        assert (other.n_ctx, other.session.options.n_ubatch, other.meta["llama.rope.freq_base"]) == (256, 64, 100)
        assert type(other.meta["llama.rope.freq_base"]) is int
    assert (ikpy_llm.dequantize(MATRIX, "F16", (kind(4), kind(32))) == MATRIX).all()


@pytest.mark.parametrize(
    "kind", [np.float16, np.float32, np.float64, np.longdouble, np.array], ids=lambda k: k.__name__
)
def test_numpy_floats_are_numbers(kind, model):
    assert written(model, temp=kind(0.5), seed=1) == written(model, temp=0.5, seed=1)
    assert (
        model.sampler(temp=kind(0.5)).options.temp == 0.5 and type(model.sampler(temp=kind(0.5)).options.temp) is float
    )
    with pytest.raises(ArgumentError, match=r"temp is .*; a finite number is accepted"):
        model.sampler(temp=kind("nan" if kind is not np.array else math.nan))


@pytest.mark.parametrize("kind", [np.bool_, np.array, int], ids=lambda k: k.__name__)
def test_numpy_truth_values_and_texts(kind, model, path):
    assert model.sampler(penalize_nl=kind(True)).options.penalize_nl is True
    assert model.sampler(penalize_nl=kind(False)).options.penalize_nl is False
    with Model.load(path, n_ctx=256, threads=1, swa_full=kind(True), cache_type_k=np.str_("bf16")) as other:
        assert other.session.options.swa_full is True and other.session.options.cache_type_k == "bf16"
    assert model.tokenize(np.str_("AB")) == model.tokenize(np.array("AB")) == model.tokenize("AB")
    assert model.sampler(samplers=np.str_("top_k"), dialect=np.str_("llama")).options.samplers == "top_k"


def test_a_seed_is_the_same_number_in_every_type(model):
    texts = {written(model, seed=s, temp=2.0) for s in (42, np.int64(42), np.uint8(42), np.uint64(42), np.array(42))}
    assert len(texts) == 1
    assert written(model, seed=np.int64(-5)) == written(model, seed=-5) == written(model, seed=np.uint64(2**64 - 5))


@pytest.mark.parametrize(
    "ids", [[2**63], [1, 2**63], [-1], [1, 10**30], np.array([2**63], np.uint64), [np.uint64(2**63), 1]], ids=str
)
def test_ids_outside_the_vocabulary(ids, model):
    for call in (
        model.generate,
        model.logits,
        model.embed,
        model.session.eval,
        partial(model.stream, sampler=model.sampler()),
    ):
        with pytest.raises(IkpyError, match=rf"token id -?\d+: the vocabulary has ids 0 to {model.n_vocab - 1}"):
            call(ids)
    with pytest.raises(IkpyError, match=f"token .* does not exist; the vocabulary has {model.n_vocab}"):
        model.detokenize(ids)


def test_sequences_of_ids(model):
    """Whatever holds whole numbers in an order is a list of ids; what has no order or holds others is none."""
    wanted = model.logits([1, 2, 3])
    array = np.array([1, 0, 2, 0, 3])[::2]
    array.flags.writeable = False
    mixed = [np.uint64(1), np.int64(2), 3]  # NumPy makes floats of such a list
    for ids in ((1, 2, 3), range(1, 4), iter([1, 2, 3]), array, array.astype(np.uint8), memoryview(array), mixed):
        np.testing.assert_array_equal(model.logits(ids), wanted)
    for ids in (
        {1, 2},
        {1: 2},
        b"ab",
        bytearray(b"ab"),
        "ab",
        [1, True],
        [1.0],
        np.array([1.0]),
        [[1]],
        np.ones((1, 2), int),
        None,
    ):
        with pytest.raises(ArgumentError, match=r"tokens is .*; a list of token ids is accepted"):
            model.logits(ids)
    for call in (model.logits, model.embed, model.generate):
        for empty in ([], (), np.array([])):
            with pytest.raises(IkpyError, match=r"no tokens|the prompt is empty"):
                call(empty)


# --- matrices -------------------------------------------------------------------------------------------------------


def test_bytes_of_a_matrix():
    """Every buffer and array gives its bytes in the order of its elements."""
    wanted = ikpy_llm.dequantize(MATRIX.tobytes(), "F16", (4, 32))
    wide = np.repeat(MATRIX, 2, axis=1)[:, ::2]
    fixed = MATRIX.copy()
    fixed.flags.writeable = False
    buffers = bytearray(MATRIX.tobytes()), memoryview(MATRIX), memoryview(wide), memoryview(MATRIX.tobytes())
    for data in (*buffers, MATRIX, wide, fixed, np.asfortranarray(MATRIX), MATRIX.view(np.uint8), MATRIX.reshape(-1)):
        assert (ikpy_llm.dequantize(data, "F16", (4, 32)) == wanted).all()
        assert (ikpy_llm.matmul(data, "F16", [4, 32], X) == ikpy_llm.matmul(MATRIX, "F16", (4, 32), X)).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X + 1j, r"x is .*; an array \(n, 32\) of real numbers is accepted"),
        (X.astype(str), "of real numbers"),
        (X.astype(object), "of real numbers"),
        ([["1"] * 32], "of real numbers"),
        (np.ma.array(X, mask=X > 0), "of real numbers"),
        ([[1.0] * 32, [1.0]], "of real numbers"),
        (X[:, :-1], r"x has shape \(2, 31\), the matrix takes \(n, 32\)"),
        (X * np.nan, "not finite"),
    ],
    ids=["complex", "texts", "objects", "list of texts", "masked", "ragged", "short", "nan"],
)
def test_activations_that_are_no_numbers(x, message):
    with pytest.raises(ArgumentError, match=message) as error:
        ikpy_llm.matmul(MATRIX, "F16", (4, 32), x)
    assert isinstance(error.value, ValueError) and str(error.value).isprintable()


def test_activations_of_other_types():
    wanted = ikpy_llm.matmul(MATRIX, "F16", (4, 32), X)
    for x in (
        X.astype(np.float64),
        X.astype(int),
        X.astype(bool),
        X.tolist(),
        np.asfortranarray(X),
        np.repeat(X, 2, 1)[:, ::2],
    ):
        assert (ikpy_llm.matmul(MATRIX, "F16", (4, 32), x) == wanted).all()
