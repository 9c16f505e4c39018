"""`ikpy-run` with grammars and schemas that llguidance would refuse, and with templates that want parts of text."""

import json

import gguf_writer
import pytest
import tiny_llama

LETTERS = [chr(33 + i) for i in range(tiny_llama.N_VOCAB - 3)]
PARTS = (
    "{% for m in messages %}<|u|>{% for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% endif %}{% endfor %}<|e|>{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose token i is chr(33 + i), with three special tokens and a template that wants parts."""
    m = tiny_llama.meta() | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*LETTERS, "<|u|>", "<|e|>", "<|a|>"],
        "tokenizer.ggml.token_type": [1] * len(LETTERS) + [3, 3, 3],
        "tokenizer.ggml.merges": ["A B"],
        "tokenizer.ggml.eos_token_id": len(LETTERS) + 1,
        "tokenizer.chat_template": PARTS,
    }
    m["tokenizer.ggml.tokens"][0] = "AB"
    return gguf_writer.write(tmp_path_factory.mktemp("run") / "m.gguf", m, tiny_llama.tensors(m, ("Q8_0",)))


def run(ikpy, model, *words, **kwargs):
    done = ikpy("run", "-m", model, "-n", "40", "-c", "256", "--temp", "0", *words, **kwargs)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (r'root ::= "\u0041\x42" 1st{2} "x"{0}', "AB11"),
        (r'root ::= "\U00000043" 1st start', "C12"),
        ("root ::= " + " | ".join(f'"Z{i}"' for i in range(3000)), None),
    ],
    ids=["u", "U", "many"],
)
def test_grammars(ikpy, model, tmp_path, rules, text):
    pytest.importorskip("llguidance")
    file = tmp_path / "g.gbnf"
    file.write_text(rules + '\n1st ::= "1"\nstart ::= "2"\n', encoding="utf-8")
    done = run(ikpy, model, "-p", "AB", "--grammar-file", file, "--no-display-prompt")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{text}\n" if text else done.stdout.startswith("Z")


def test_a_schema_that_is_relaxed(ikpy, model):
    pytest.importorskip("llguidance")
    schema = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "minItems": 3, "maxItems": 3}
    done = run(ikpy, model, "-p", "AB", "-j", json.dumps(schema), "--no-display-prompt")
    assert len(json.loads(done.stdout)) == 3 and done.stderr.count("left out: uniqueItems") == 1
    wrong = run(ikpy, model, "-p", "AB", "-j", "false")
    assert wrong.returncode == 1 and "false, which no text follows" in wrong.stderr


def test_a_template_that_wants_parts(ikpy, model):
    found = [run(ikpy, model, "-st", "-p", text).stdout for text in ("AB", "CDEF")]
    assert found[0] != found[1] and all(found)
    text = "{% for m in messages %}<|u|>{{ m.contents }}<|e|>{% endfor %}"
    done = run(ikpy, model, "-st", "-p", "AB", "--chat-template", text)
    assert done.returncode == 1 and "leaves out the text of message 0 (role 'user')" in done.stderr
