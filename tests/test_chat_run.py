"""`ikpy-run` in conversation: through a pipe, on a terminal, with its commands; sampler and grammar flags; notices."""

import json
import os
import re
import sys

import gguf_writer
import pytest
import tiny_llama
from terminal import Terminal

from ikpy_llm.cli import chat_input
from ikpy_llm.cli.commands import run
from ikpy_llm.cli.options import parse
from ikpy_llm.cli.sampler_flags import sampling_of
from ikpy_llm.errors import IkpyError
from ikpy_llm.sampling.options import SamplerOptions

LETTERS = [chr(33 + i) for i in range(tiny_llama.N_VOCAB - 4)]
SPECIAL = ["<|u|>", "<|e|>", "<|a|>", "<|s|>"]
MARKS = "{'user': '<|u|>', 'system': '<|s|>', 'assistant': '<|a|>'}"
TEMPLATE = (
    "{% for m in messages %}{{ " + MARKS + "[m.role] }}{{ m.content }}<|e|>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Token i is chr(33 + i); the last four are the marks of the chat template."""
    m = tiny_llama.meta() | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*LETTERS, *SPECIAL],
        "tokenizer.ggml.token_type": [1] * len(LETTERS) + [3] * 4,
        "tokenizer.ggml.merges": ["A B"],
        "tokenizer.ggml.eos_token_id": len(LETTERS) + 1,
        "tokenizer.chat_template": TEMPLATE,
    }
    m["tokenizer.ggml.tokens"][0] = "AB"
    return gguf_writer.write(tmp_path_factory.mktemp("run") / "m.gguf", m, tiny_llama.tensors(m, ("Q8_0",)))


def talk(ikpy, model, *words, text="", n=6):
    done = ikpy("run", "-m", model, "-n", n, "--temp", "0", "-c", "256", *words, input=text)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_piped_conversation(ikpy, model):
    done = talk(ikpy, model, "-cnv", text="ABC\nDEF\n")
    assert done.returncode == 0, done.stderr
    replies = done.stdout.splitlines()
    assert len(replies) == 2 and all(replies)
    # two replies of up to 6 tokens; the second turn evaluates its own message, not the first one again
    (n,) = re.findall(r"prompt eval time = .* / +(\d+) tokens", done.stderr)
    assert int(n) < 2 * len("uABCea") + 4
    assert talk(ikpy, model, "-cnv", "-p", "ABC", text="DEF\n").stdout == done.stdout
    assert talk(ikpy, model, "-p", "ABC", "-st").stdout.splitlines() == replies[:1]
    system = talk(ikpy, model, "-sys", "XYZ", "-p", "ABC", "-st").stdout
    assert system.count("\n") == 1


def test_commands_of_a_conversation(ikpy, model, tmp_path):
    saved = tmp_path / "talk.json"
    text = f"ABC\n/save {saved}\n/clear\nABC\n/help\n/save\n/exit\nDEF\n"
    done = talk(ikpy, model, "-sys", "S", text=text)
    replies = done.stdout.splitlines()
    assert done.returncode == 0 and len(replies) == 2 and replies[0] == replies[1]
    messages = json.loads(saved.read_text(encoding="utf-8"))
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert messages[2]["content"] == replies[0]
    assert "the conversation is forgotten" in done.stderr and "needs the name of a file" in done.stderr
    assert "/save FILE" in done.stderr


def test_several_lines(ikpy, model):
    one = talk(ikpy, model, "-cnv", text="AB\\\nCD\n")
    assert len(one.stdout.splitlines()) == 1
    assert talk(ikpy, model, "-cnv", "-mli", text="AB\nCD\\\n").stdout == one.stdout
    assert talk(ikpy, model, "-cnv", "-mli", text="AB\nCD").stdout == one.stdout  # the end of the input ends it too
    assert len(talk(ikpy, model, "-cnv", text="AB\n\nCD\n").stdout.splitlines()) == 2


def test_raw_turns(ikpy, model):
    text = talk(ikpy, model, "-p", "ABC", "--no-display-prompt", n=8).stdout.rstrip("\n")
    assert len(text) >= 6
    stop = text[3:5]
    at = text.find(stop)
    assert talk(ikpy, model, "-p", "ABC", "-r", stop, "--no-display-prompt", n=8).stdout == text[:at] + "\n"
    done = talk(ikpy, model, "-i", "-p", "ABC", "-r", stop, "--in-prefix", "P", "--in-suffix", r"\tS", text="X\n", n=8)
    assert done.stdout.startswith("ABC" + text[:at] + stop + "\tS")
    assert talk(ikpy, model, "-if", text="ABC\n", n=3).returncode == 0
    assert talk(ikpy, model, "-i", "-p", "ABC", "-st", n=8).stdout == "ABC" + text + "\n"


def test_a_full_context(ikpy, model):
    done = talk(ikpy, model, "-p", "ABC", "--ignore-eos", "--keep", "2", n=400)
    assert re.search(r"eval time = .* / +\d+ tokens", done.stderr)
    assert len(done.stdout) > 300
    done = talk(ikpy, model, "-cnv", text="A" * 300 + "\n")
    assert done.returncode == 1 and "does not fit" in done.stderr


def test_a_missing_package_is_said_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(IkpyError, match="pip install llguidance"):
        run.main(options("-m", "no-such-file.gguf", "-p", "x", "-j", "{}"))


def test_grammar_flags(ikpy, model, tmp_path):
    pytest.importorskip("llguidance")
    rules = tmp_path / "g.gbnf"
    rules.write_text('root ::= "CD" [0-9]{3}\n', encoding="utf-8")
    done = talk(ikpy, model, "-p", "AB", "--grammar-file", rules, "--no-display-prompt", n=50)
    assert re.fullmatch(r"CD\d{3}\n", done.stdout), done.stderr
    done = talk(ikpy, model, "-p", "AB", "-j", '{"enum": [12, 34]}', "--no-display-prompt", n=50)
    assert done.stdout.strip() in ("12", "34")
    done = talk(ikpy, model, "-p", "AB", "-j", "{", n=5)
    assert done.returncode == 1 and "not JSON" in done.stderr


def options(*words):
    return parse(run.Options, words, "ikpy-run", environ={})


def test_sampler_flags():
    assert sampling_of(options()) == {}
    words = "--temp 0.5 --top-k 3 --tfs 0.9 --typical 0.8 --top-nsigma 1.5 --xtc-probability 0.1 --xtc-threshold 0.2 "
    words += "--min-keep 2 --repeat-penalty 1.1 --presence-penalty 0.1 --frequency-penalty 0.2 --penalize-nl "
    words += "--dry-multiplier 0.8 --dry-base 1.5 --dry-allowed-length 3 --dry-penalty-last-n 64 --mirostat 2 "
    words += "--mirostat-lr 0.2 --mirostat-ent 4 --dynatemp-range 0.1 --dynatemp-exp 2 --adaptive-target 0.3 "
    words += "--adaptive-decay 0.8 --adaptive-updt-w-cur -s 7 -l 5+1 -l 6-inf --sampling-seq kpt"
    found = sampling_of(options(*words.split(), "--dry-sequence-breaker", "a,b", "--dry-sequence-breaker", r"\n"))
    o = SamplerOptions(**found)
    assert (o.temp, o.top_k, o.tfs_z, o.typical_p, o.top_n_sigma, o.min_keep) == (0.5, 3, 0.9, 0.8, 1.5, 2)
    assert (o.mirostat, o.mirostat_ent, o.adaptive_target, o.adaptive_updt_w_cur, o.seed) == (2, 4, 0.3, True, 7)
    assert o.logit_bias == {5: 1.0, 6: -float("inf")} and o.dry_sequence_breakers == ("a,b", "\n")
    assert o.chain() == ("top_k", "top_p", "temperature") and o.penalize_nl is True
    assert sampling_of(options("--no-penalize-nl")) == {"penalize_nl": False}
    llama = SamplerOptions(**sampling_of(options("--compat", "llama")))
    assert (llama.top_n_sigma, llama.xtc_threshold, llama.dry_penalty_last_n) == (-1, 0.1, 64)
    assert llama.chain()[0] == "penalties"
    assert SamplerOptions(**sampling_of(options("--preset", "ollama", "--top-p", "0.5"))).top_p == 0.5
    for wrong, part in (
        (["--samplers", "top_k", "--sampling-seq", "k"], "exclude each other"),
        (["--sampling-seq", "q"], "'q' is no step"),
        (["-l", "x"], "logit-bias"),
        (["--grammar", "x", "-j", "{}"], "exclude each other"),
        (["--grammar-file", "no-such-file"], "No such file"),
    ):
        with pytest.raises(IkpyError, match=part):
            sampling_of(options(*wrong))


def test_flags_of_the_contract_are_accepted():
    words = """-hf u/r -hff f -hft t -t 2 -tb 2 -c 512 -n 4 -b 64 -ub 64 -fa -ctk q8_0 -ctv q8_0 -khad --no-mmap --mlock
    -thp -rtr --numa distribute --no-warmup -ot a=CPU -cmoe -ncmoe 3 --override-kv a=int:3 --check-tensors -vq
    --defer-experts --rope-scaling yarn --rope-freq-base 1e6 --yarn-orig-ctx 4096
    --control-vector-layer-range 1 2 -s 1 --samplers top_k -v --verbosity 3 --minilog -lv 3
    --log-file f --log-colors auto -e -no-cnv -i -if -r x --in-prefix a --in-suffix b -mli --chat-template chatml
    --jinja --chat-template-kwargs {} --reasoning-format none -rea off --reasoning-budget 0 --no-display-prompt -co
    --simple-io -sp --ignore-eos --keep 4 --prompt-cache f --prompt-cache-all -md f --spec-type x --mmproj f -st -ngl 99
    -mla 3 -amb 512 -fmoe -ser 6,1 -gr -muge -mqkv -sm none -mg 0 -ts 1 --offline -if -cl"""
    found = options(*words.split(), "-sys", "be brief")
    assert len(found.notices) == 2
    assert (found.cache_type_k, found.cache_type_v, found.khad, found.vhad) == ("q8_0", "q8_0", True, False)
    assert "-md f" in found.notices[1] and "-ngl 99" in found.notices[0]
    assert (found.color, found.keep, found.system, found.verbose) == ("on", 4, "be brief", True)


def test_commands_and_messages_with_a_slash():
    assert all(map(chat_input.is_command, ("/clear", " /exit ", "/help", "/save x.json", "/save")))
    assert not any(map(chat_input.is_command, ("/etc/passwd", "/clear the table", "hello /exit", "/saved")))


# --- on a terminal ---


REPLY = r"ABC\r\n(\x1b\[\?2004l\r)?(\x1b\[0m)?[^\r\n]{20}"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
def test_on_a_terminal(model):
    words = ("-cnv", "-n", "-1", "--ignore-eos", "--temp", "0", "-co")
    with Terminal("run", "-m", model, "-c", "200000", *words) as t:  # room for a reply that lasts until it is stopped
        t.until("> $|> \x1b|> ")
        assert "/clear" in t.text and "\x1b[32m" in t.text
        t.press("ABC\n")
        t.until(REPLY)
        t.interrupt()  # the reply stops, the conversation goes on
        t.until("> ")
        t.press("/clear\n")
        t.until("forgotten(.|\n)*> ")
        t.press("\x1b[A\x1b[A\n")  # the first message again, from the history
        t.until(REPLY)
        t.interrupt()
        t.until("> ")
        t.idle()
        t.interrupt()
        t.until("ends(.|\n)*> ")
        t.press("/exit\n")
        assert t.end() == 0 and "total time" in t.text
