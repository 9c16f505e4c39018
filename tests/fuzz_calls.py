"""Fuzz of calls: settings, products, a model used in any order, command lines."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings

import fuzz_models
import gguf_writer
import guards
import numpy as np
from fuzz_case import PLAIN_TYPES, Case, Wrong, any_text, finite, kind, model_of, one_line, run, shared

import ikpy_llm
from ikpy_llm import Model
from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.quants import file_types, table

# Kernels of attention are compiled for each pair of types and size of heads, in seconds: a form has few pairs.
TYPES_KV = (("f32", "bf16"), ("q8_0", "q8_0"), ("q8_KV", "q5_1"), ("q4_0", "iq4_nl"), ("q6_0", "q4_1"), ("q5_0", "f16"))
ODD = (-1, 0, 1, 2, 3, 255, 257, 1 << 31, 1 << 70, 1.5, float("nan"), "x", None, True, [], b"q8_0", np.int8(3), np.nan)


def good_options(c: Case, form: str = "") -> dict:
    """Settings that go with any model; `form`: its name."""
    pair = sum(map(ord, form)) % len(TYPES_KV)
    (k, v), had = c.rng.choice((("f16", "f16"), TYPES_KV[pair])), pair % 2 == 1
    out = {
        "n_ctx": c.rng.choice((1, 256, 512, 700)),
        "n_ubatch": c.rng.choice((1, 2, 7, 16, 33, 512)),
        "n_batch": c.rng.choice((5, 2048, 2048)),
        "threads_batch": c.rng.choice((0, 1, 3)),
        "repack": c.rng.choice((None, True, False)),
        "pp_requant": c.often(0.2),
        "cache_type_k": k,
        "cache_type_v": v,
        "khad": had and k != "f16",
        "vhad": had and v != "f16",
        "flash_attn": c.often(0.8),
        "swa_full": c.often(0.2),
        "mla": c.rng.randrange(4),
        "amb": c.rng.choice((0, 1, 256)),
        "ser": c.rng.choice(("", "", "1,0.5", "2,1", "-1,0")),
    }
    return {k: v for k, v in out.items() if c.often(0.5)}


@kind
def options(c: Case) -> None:
    """Valid models, all ways to run them, prompts up to the end of the context."""
    form = c.rng.choice(list(fuzz_models.FORMS))
    meta, tensors = fuzz_models.model(form, c.rng.choice(PLAIN_TYPES))
    path = c.write(gguf_writer.build(meta | fuzz_models.vocabulary("gpt2"), tensors))
    more = good_options(c, form)
    if c.often(0.2):
        more[c.rng.choice(list(more) or ["mla"])] = c.rng.choice(ODD)
    tokens = c.tokens(c.rng.choice((1, 2, 5, 33, 100, 250)))
    n_ctx = more.pop("n_ctx", 512)
    first = run(c, path, "", 1, n_ctx=n_ctx, tokens=tokens, **more)
    threads, side = c.rng.choice((1, 2, 2, 3)), c.rng.choice(guards.SIDES)
    if run(c, path, side, threads, n_ctx=n_ctx, tokens=tokens, **more) != first:
        raise Wrong(f"other bytes on {threads} threads and guard pages ({side})")


@kind
def products(c: Case) -> None:
    """dequantize and matmul: any bytes, all types, all shapes; on guard pages to the byte as without."""
    name = c.rng.choice(file_types())
    info = table.by_name(name)
    k = c.rng.choice((1, 2, 3, 5)) * max(info.block, 128 if name == "I2_S" else 32)
    rows = c.rng.choice((1, 2, 3, 5, 8, 15, 16, 17, 33)) * info.interleave
    shape = (rows, k)
    raw = np.frombuffer(
        fuzz_models.encoded(name, shape, c.np) if name != "F32" else c.np.random(shape, np.float32), np.uint8
    )
    if c.often(0.5):
        raw = np.frombuffer(c.rng.randbytes(raw.size), np.uint8)
    x = c.np.standard_normal((c.rng.choice((1, 2, 3, 8, 9, 17)), k)).astype(np.float32)
    if c.often(0.2):
        name, shape = (
            c.rng.choice((name, "Q9", "", None)),
            c.rng.choice((shape, (rows, k + 1), (0, k), (-1, 2), (rows,))),
        )
    out = []
    for side in ("", *guards.SIDES):
        with guards.on(side), np.errstate(all="ignore"):
            data, columns = guards.copy(raw), guards.copy(x)
            out.append(
                (
                    ikpy_llm.dequantize(data, name, shape).tobytes(),
                    ikpy_llm.matmul(data, name, shape, columns).tobytes(),
                )
            )
    if not out[0] == out[1] == out[2]:
        raise Wrong(f"{name} {shape}: other bytes on guard pages")


# ---- calls in any order
ODD_IDS = (
    [],
    [0],
    [69],
    [70],
    [-1],
    [1 << 40],
    [1.0],
    "x",
    None,
    [True],
    np.arange(3),
    np.arange(3.0),
    [0] * 300,
    "the th",
    [[1]],
)


@kind
def calls(c: Case) -> None:
    """A model used in any order: texts begun and left, sessions, closing, other models beside it."""
    options = good_options(c) if c.often(0.5) else {}
    options.update(n_ctx=256, threads=c.rng.choice((1, 2)), amb=256, mla=3)
    side = c.rng.choice(("", *guards.SIDES))
    with guards.on(side), contextlib.ExitStack() as stack:
        models, texts = [], []
        for _ in range(c.rng.randint(3, 14)):
            try:
                one_call(c, stack, models, texts, options)
            except IkpyError as error:
                one_line(error)


def one_call(c: Case, stack, models: list, texts: list, options: dict) -> None:
    rng = c.rng
    if not models:
        models.append(stack.enter_context(model_of(c, **options)))
        stack.callback(lambda: [text.close() for text in texts])
    m, ids = rng.choice(models), rng.choice((c.tokens(rng.choice((1, 3, 30))), rng.choice(ODD_IDS)))
    what = rng.randrange(18)
    if what <= 1:
        texts.append(m.generate(ids, n_predict=rng.choice((-2, -1, 0, 5)), keep=rng.choice((None, 0, -1, 3))))
    elif what <= 4 and texts:
        text = rng.choice(texts)
        for _ in range(rng.randrange(40)):
            next(text, None)
    elif what == 5:
        finite(m.logits(ids), "logits")
    elif what == 6:
        finite(m.embed(ids, pooling=rng.choice((None, "mean", "last", "cls", "none", "x"))), "embedding")
    elif what == 7:
        finite(m.session.eval(ids), "logits")
    elif what == 8:
        m.session.rewind(rng.choice((0, 1, m.session.position, m.session.position + 1, -1, 10**6)))
    elif what == 9:
        m.reset()
    elif what == 10:
        m.close()
        if rng.random() < 0.5:
            models.remove(m)
    elif what == 11:
        m.save_session(c.folder / "s")
    elif what == 12:
        m.load_session(c.folder / "s")
    elif what == 13:
        list(m.chat([{"role": "user", "content": "th"}], n_predict=3, template=rng.choice((None, "chatml"))))
    elif what == 14 and len(models) < 3:
        models.append(stack.enter_context(model_of(c, **options)))
    elif what == 15:
        m.detokenize(ids)
        m.perplexity("the end. " * 20, 8)
    elif what == 16:
        forked(m)
    else:
        sampling = {
            "temp": rng.choice(ODD),
            "top_k": rng.choice(ODD),
            "seed": rng.choice(ODD),
            "mirostat": rng.choice(ODD),
        }
        name = rng.choice(list(sampling))
        list(m.generate([1, 2], n_predict=2, **{name: sampling[name]}))


def forked(m: Model) -> None:
    """A child computes with its copy of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(10)
            list(m.generate([1, 2], n_predict=3))
            code = 0
        except IkpyError:  # closed, or settings
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise Wrong(f"a forked child ended with {os.waitstatus_to_exitcode(status)}")


@kind
def command_line(c: Case) -> None:
    """`ikpy-run` with any flags and values."""
    import io

    from ikpy_llm import cli
    from ikpy_llm.cli import options as flags
    from ikpy_llm.cli.commands import run as command

    shared(c)
    words = ["run", "-m", str(c.folder.parent / "shared.gguf"), "-n", "3", "-c", "256", "-t", "1"]
    words += ["-p", any_text(c.rng).replace("\x00", "").encode("utf-8", "replace").decode()]
    banned = {
        "hf_repo",
        "hf_file",
        "hf_token",
        "model_url",
        "model",
        "file",
        "n_predict",
        "prompt",
        "system_file",
        "n_ctx",
    }
    known = [f for f in flags.flags_of(command.Options) if f[0].name not in banned and f[1].names]
    for field, spec in c.rng.sample(known, c.rng.randint(1, 4)):
        if any(word in field.name for word in ("cache_list", "file", "color", "interactive", "log", "threads")):
            continue
        words.append(c.rng.choice(spec.names))
        if spec.bare is None and flags.base_type(field) is not bool:
            pool = (
                *spec.choices,
                "0",
                "1",
                "2",
                "-1",
                "0.5",
                "99999999999",
                "nan",
                "1e400",
                "x",
                "",
                "a,b",
                "q8_0",
                "é",
            )
            words.append(c.rng.choice(pool))
            if field.name == "prompt_cache":
                words[-1] = str(c.folder / "cache")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(words, "ikpy")
        except SystemExit as end:  # --help
            code = end.code
    said = err.getvalue()
    if code not in (0, 1, None) or "Traceback" in said:
        raise Wrong(f"{words}: code {code}: {said[-500:]}")
    if code == 1 and not said.splitlines()[-1].startswith("error: "):
        raise Wrong(f"{words}: code 1 without a word: {said[-500:]}")
