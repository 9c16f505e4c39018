"""The project's own fuzz for a minute, with the same seeds every time; properties that hold for any input.

benchmarks/fuzz.py goes on for as long as one likes.
"""

import math

import fuzz_cases
import fuzz_files
import fuzz_mutations
import fuzz_pool
import gguf_writer
import guards
import pytest
import tiny_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.errors import IkpyError, shown
from ikpy_llm.text.stops import StopMatcher
from ikpy_llm.text.vocab.vocab import load_vocab

SECONDS = 60
# Every example is the same in every run: a failure is one of this tree.
FIXED = settings(
    derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def judged(cases, seconds=0) -> fuzz_pool.Result:
    """What came of the cases, none of which may be a finding."""
    result = fuzz_pool.run(cases, seconds=seconds)
    found = "\n".join(f"{f['kind']}:{f['seed']}  {f['why']}" for f in result.findings)
    assert not result.findings, f"python benchmarks/fuzz.py --replay KIND:SEED runs one again:\n{found}"
    return result


@pytest.mark.slow
@pytest.mark.skipif(not guards.HERE, reason="guard pages and limits of this system")
def test_a_minute_of_fuzz_finds_nothing():
    kinds = [name for name in fuzz_cases.CASES if name != "valid"]
    result = judged(((kind, seed) for seed in range(10_000) for kind in kinds), SECONDS)
    assert result.n > len(kinds)


@pytest.mark.slow
@pytest.mark.skipif(not guards.HERE, reason="guard pages and limits of this system")
def test_every_architecture_and_type_stays_within_its_buffers():
    n = len(fuzz_files.valid_models())
    assert judged(("valid", i) for i in range(n)).counts["valid", "ran"] == n


@pytest.mark.skipif(not guards.HERE, reason="workers of this system")
def test_the_pool_reports_whatever_a_case_does(monkeypatch, tmp_path):
    """A death, a hang, a message of two lines, a warning, a descriptor that stays open; and goes on after each."""
    worker = tmp_path / "worker.py"
    source = fuzz_pool.WORKER.read_text(encoding="utf-8").replace("SECONDS = 20", "SECONDS = 1")
    bad = {
        "fine": "None",
        "refused": "fail(IkpyError('one line'))",
        "lines": "fail(IkpyError('two' + chr(10) + 'lines'))",
        "error": "1 / 0",
        "warning": "warnings.warn('x')",
        "left_open": "open_ones.append(open('/dev/null'))",
        "signal": "os.kill(os.getpid(), 11)",
        "hang": "time.sleep(60)",
        "log": "logging.getLogger('ikpy').warning('two' + chr(10) + 'lines')",
    }
    body = ["open_ones = []", "def fail(error): raise error"]
    body += [f"fuzz_cases.CASES[{name!r}] = lambda c: {code}" for name, code in bad.items()]
    source = source.replace("\nif __name__", "\n" + "\n".join(body) + "\n\nif __name__")
    worker.write_text(source, encoding="utf-8")
    monkeypatch.setattr(fuzz_pool, "WORKER", worker)
    result = fuzz_pool.run((name, seed) for name in bad for seed in range(2))
    right = {
        "fine": ("ran", 2),
        "refused": ("refused", 2),
        "left_open": ("finding", 1),
    }  # the first may open what stays
    for name in bad:
        outcome, n = right.get(name, ("finding", 2))
        assert result.counts[name, outcome] == n, name
    why = {f["kind"]: f["why"] for f in result.findings}
    assert "SIGSEGV" in why["signal"] and "Timeout" in why["hang"] and "ZeroDivisionError" in why["error"]
    assert "descriptors" in why["left_open"]


# ---- properties
NUMBERS = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.integers(-(2**63), -1),
    st.floats(width=32),
    st.text(max_size=40),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5),
    st.lists(st.text(max_size=9), min_size=1, max_size=5),
)


@FIXED
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=30), NUMBERS, max_size=8
    )
)
def test_metadata_is_read_as_it_was_written(tmp_path, meta):
    meta = {k: v for k, v in meta.items() if not k.startswith(("general.", "split."))}
    file = open_gguf(gguf_writer.write(tmp_path / "m.gguf", meta, {}))
    found = {k: list(v) if hasattr(v, "raw") else v for k, v in file.meta.items()}
    file.close()
    assert found.keys() == meta.keys()
    for key, value in meta.items():
        assert found[key] == value or (math.isnan(value) and math.isnan(found[key])), key


BLOB = gguf_writer.build(tiny_llama.meta(n_layer=1), tiny_llama.tensors(tiny_llama.meta(n_layer=1)))
PLACES = [place for at, size in fuzz_mutations.fields(BLOB) for place in range(at, at + size)]


@FIXED
@given(st.dictionaries(st.sampled_from(PLACES), st.integers(0, 255), min_size=1, max_size=9))
def test_any_bytes_in_a_header_are_read_or_refused_in_a_line(tmp_path, changes):
    blob = bytearray(BLOB)
    for at, byte in changes.items():
        blob[at] = byte
    path = tmp_path / "m.gguf"
    path.write_bytes(blob)
    try:
        file = open_gguf(path)
    except IkpyError as error:
        fuzz_cases.one_line(error)
    else:
        assert all(t.offset + t.n_bytes <= len(blob) for t in file.tensors.values())
        file.close()


def byte_pieces() -> list[str]:
    """gpt2's text of each byte."""
    shown_as_they_are = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in shown_as_they_are else chr(next(others)) for b in range(256)]


@pytest.fixture(scope="module")
def vocab(folder):
    pieces = [*byte_pieces(), "th", "the", "<|end|>"]
    meta = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [1] * (len(pieces) - 1) + [3],
        "tokenizer.ggml.merges": ["t h", "th e"],
    }
    file = open_gguf(gguf_writer.write(folder / "v.gguf", meta, {}))
    return load_vocab(file.meta, file.path)


@FIXED
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_text_survives_its_tokens(vocab, text):
    ids = vocab.encode(text, add_special=False)
    assert vocab.decode(ids, skip_special=False) == text
    decoder = vocab.decoder(False)
    assert "".join(map(decoder.feed, ids)) + decoder.flush() == text


@FIXED
@given(st.lists(st.text("abc", max_size=4)), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_pieces_never_hold_a_stop_text(pieces, stops):
    matcher, out = StopMatcher(stops), ""
    for piece in pieces:
        out += matcher.feed(piece)
        if matcher.found is not None:
            break
    out += matcher.flush()
    text = "".join(pieces)
    ends = [text.find(s) for s in stops if s in text]
    assert out == (text[: min(ends)] if ends else text)


@FIXED
@given(st.one_of(st.text(), st.binary(), st.floats(), st.lists(st.text())))
def test_what_an_error_repeats_is_a_short_line(value):
    assert shown(value).isprintable() and len(shown(value)) <= 5 * 80
