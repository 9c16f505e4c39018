"""Tokens whose texts say more than the file: ends of texts, exemptions, spaces they take. The rules are llama.cpp's."""

import pytest
import tiny_model
from gguf_writer import write

from ikpy_llm import Model
from ikpy_llm.engine.file.gguf import open_gguf
from ikpy_llm.errors import ModelFileError
from ikpy_llm.text.vocab.vocab import load_vocab

LETTERS = [*"abcdefghijklmnopqrstuvwxyz<>/|_[]", "\u0120"]


def vocab_of(folder, tokens, types=None, *, name=None, architecture=None, **more):
    """A gpt2 vocabulary of letters and `tokens` (type 1 unless `types` says), `more` are keys after tokenizer.ggml."""
    keys = {"model": "gpt2", "pre": "gpt-2", "merges": ["a b"], "tokens": [*LETTERS, *tokens]}
    keys["token_type"] = [1] * len(LETTERS) + list(types or [1] * len(tokens))
    meta = {f"tokenizer.ggml.{key}": value for key, value in (keys | more).items()}
    meta |= {f"general.{key}": v for key, v in (("name", name), ("architecture", architecture)) if v is not None}
    path = write(folder / "v.gguf", meta, {})
    return load_vocab(open_gguf(path).meta, path)


def eog(vocab):
    return {vocab.pieces[i] for i in vocab.eog}


@pytest.mark.parametrize(
    "end",
    """<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|>
    <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response>
    <\uff5cend\u2581of\u2581sentence\uff5c> [e~[
    <|fim_pad|> <fim_pad> <PAD> [PAD] <|repo_name|> <|fim_repo|> <reponame> <|file_sep|>""".split(),
)
def test_texts_that_end_a_generation(tmp_path, end):
    vocab = vocab_of(tmp_path, ["<other>", end])
    i = vocab.n_tokens - 1
    assert vocab.eog == {i}
    # and it is a control token, whatever the file says: read only where asked for, not part of the text
    assert vocab.encode("a" + end, parse_special=True) == [0, i] and i not in vocab.encode("a" + end)
    assert vocab.decode([0, i]) == "a"


def test_one_token_fills_a_role_and_keys_come_first(tmp_path):
    assert eog(vocab_of(tmp_path, ["<|fim_pad|>", "<PAD>"])) == {"<|fim_pad|>"}
    assert eog(vocab_of(tmp_path, ["<|fim_pad|>", "<x>"], fim_pad_token_id=len(LETTERS) + 1)) == {"<x>"}
    vocab = vocab_of(tmp_path, ["<|im_end|>", "<x>"], eot_token_id=len(LETTERS) + 1)
    assert eog(vocab) == {"<|im_end|>", "<x>"} and vocab.pieces[vocab.eot] == "<x>"
    assert vocab_of(tmp_path, ["<x>"], eom_token_id=len(LETTERS)).eog == {len(LETTERS)}
    vocab = vocab_of(tmp_path, ["<EOT>", "<|eot_id|>"])
    assert vocab.pieces[vocab.eot] == "<|eot_id|>" and len(vocab.eog) == 2


def test_tokens_of_infilling_are_read_as_tokens_and_end_nothing(tmp_path):
    texts = ["<|fim_prefix|>", "<fim_suffix>", "<\uff5cfim\u2581end\uff5c>"]
    vocab = vocab_of(tmp_path, texts)
    ids = list(range(len(LETTERS), vocab.n_tokens))
    assert vocab.encode("".join(texts), parse_special=True) == ids and vocab.eog == set()
    assert not set(ids) & set(vocab.encode("".join(texts)))
    # the older name of the key: another token has the role, so this one keeps its type
    vocab = vocab_of(tmp_path, ["<|fim_prefix|>", "<x>"], prefix_token_id=len(LETTERS) + 1)
    assert len(LETTERS) not in vocab.encode("<|fim_prefix|>", parse_special=True)


def test_end_of_a_sentence_tag_of_gemma4_is_text(tmp_path):
    texts = ["<eos>", "</s>", "<|tool_response>", "<turn|>", "<bos>"]
    more = {"model": "gemma4", "eos_token_id": len(LETTERS), "bos_token_id": len(LETTERS) + 4}
    vocab = vocab_of(tmp_path, texts, [3, 3, 3, 3, 3], **more)
    assert eog(vocab) == {"<eos>", "<|tool_response>", "<turn|>"}
    tag, letters = len(LETTERS) + 1, [LETTERS.index(letter) for letter in "a</s>b"]
    assert vocab.encode("a</s>b", False, True) == vocab.encode("a</s>b", False) == letters
    assert vocab.decode([0, tag, 1]) == "a</s>b"
    merging = vocab_of(tmp_path, texts, [3, 3, 3, 3, 3], **more, merges=["< /", "</ s", "</s >"])
    assert merging.encode("a</s>b", False) == [0, tag, 1]
    assert vocab.encode("<turn|>", False, True) == [len(LETTERS) + 3]
    without = vocab_of(tmp_path, ["<eos>", "</s>"], [3, 3])
    assert eog(without) == {"<eos>", "</s>"} and without.encode("a</s>b", False, True) == [0, tag, 1]


@pytest.mark.parametrize(
    ("others", "ends"),
    [
        (["<|return|>", "<|call|>"], {"<|return|>", "<|call|>"}),
        (["<|return|>", "<|calls|>"], {"<|return|>", "<|calls|>"}),
        (["<|flush|>", "<|calls|>"], {"<|flush|>", "<|calls|>"}),
        (["<|return|>"], {"<|return|>", "<|end|>"}),
        (["<|call|>"], {"<|call|>", "<|end|>"}),
        ([], {"<|end|>"}),
    ],
)
def test_end_of_a_part_of_a_message_ends_no_text(tmp_path, others, ends):
    vocab = vocab_of(tmp_path, ["<|end|>", *others, "<|endoftext|>"], [3] * (len(others) + 2))
    assert eog(vocab) == ends | {"<|endoftext|>"}
    exempt = "<|end|>" not in ends
    assert vocab.decode([len(LETTERS)]) == ("<|end|>" if exempt else "")
    assert vocab.pieces[vocab.eot] == ("<|endoftext|>" if exempt else "<|end|>")


@pytest.mark.parametrize("text", ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"])
def test_marks_of_gpt_oss_are_part_of_the_text(tmp_path, text):
    vocab = vocab_of(tmp_path, [text], [3])
    assert vocab.encode("a" + text) == [0, len(LETTERS)] and vocab.decode([0, len(LETTERS)]) == "a" + text


def test_gemma4_begins_with_bos_whatever_the_file_says(tmp_path):
    for pre, kind in (("gemma4", "gemma4"), ("gemma4", "gpt2"), ("granite-embed-multi-311m", "gpt2")):
        vocab = vocab_of(tmp_path, [], model=kind, pre=pre, add_bos_token=False, bos_token_id=3)
        assert vocab.add_bos and vocab.encode("a") == [3, 0]
    assert not vocab_of(tmp_path, [], add_bos_token=False, bos_token_id=3).add_bos
    assert vocab_of(tmp_path, [], model="gemma4", pre="default", bos_token_id=3).encode("a\n") == [3, 0]


MASKED = {"architecture": "nomic-bert-moe"}, {"architecture": "jina-bert-v3"}, {"pre": "jina-v2-es"}


@pytest.mark.parametrize(
    "which", [*MASKED, {"name": "ModernBERT base modern-bert"}, {"architecture": "modern-bert"}], ids=str
)
def test_masks_take_the_spaces_before_them(tmp_path, which):
    mask = "<mask>" if which in MASKED else "[MASK]"
    vocab = vocab_of(tmp_path, [mask, "<other>"], [3, 3], **which)
    m, other, space = len(LETTERS), len(LETTERS) + 1, len(LETTERS) - 1
    assert vocab.encode(f"a \n\t{mask} b", parse_special=True) == [0, m, space, 1]
    assert vocab.encode(f" {mask} {mask}", parse_special=True) == [m, m]
    assert vocab.encode("a <other> b", parse_special=True) == [0, space, other, space, 1]
    plain = vocab_of(tmp_path, [mask], [3])
    assert plain.encode(f"a {mask}", parse_special=True) == [0, space, m]


@pytest.mark.parametrize(
    ("which", "takes"),
    [
        ({"name": "Phi-3 mini"}, True),
        ({"name": "phi3"}, True),
        ({"name": "Phi 3.5 Mini Instruct", "architecture": "phi3"}, False),  # gpt2: Phi 4 mini has this architecture
        ({"name": "Phi 4 Mini Instruct", "architecture": "phi3"}, False),
        ({"name": "x"}, False),
    ],
)
def test_special_tokens_of_phi3_take_the_spaces_after_them(tmp_path, which, takes):
    vocab = vocab_of(tmp_path, ["<|user|>", "<s>"], [3, 3], **which)
    user, begin, space = len(LETTERS), len(LETTERS) + 1, len(LETTERS) - 1
    expected = [user, 0, begin, space, 0] if takes else [user, space, 0, begin, space, 0]
    assert vocab.encode("<|user|> a<s> a", parse_special=True) == expected


def test_architecture_phi3_with_pieces_of_sentencepiece_takes_spaces(tmp_path):
    more = {"model": "llama", "scores": [0.0] * (len(LETTERS) + 1), "architecture": "phi3", "name": "Phi 3.5"}
    vocab = vocab_of(tmp_path, ["<|user|>"], [3], add_bos_token=False, add_space_prefix=False, **more)
    assert vocab.encode("<|user|> \na", parse_special=True) == [len(LETTERS), 0]


def test_of_many_special_tokens_the_longest_wins_wherever_it_stands(tmp_path):
    vocab = vocab_of(tmp_path, ["<ab>", "<ab><", "<abc", "b>", "<"], [3, 4, 3, 4, 4])
    ids = [len(LETTERS) + i for i in range(5)]
    assert vocab.encode("<ab><abc", parse_special=True) == [ids[1], *vocab.encode("abc")]
    assert vocab.encode("<ab>", parse_special=True) == [ids[0]]
    assert vocab.encode("<ab>") == [ids[4], 0, ids[3]]  # user-defined ones are always read


def test_forbidden_tokens_are_never_generated(tmp_path):
    path = tiny_model.write(tmp_path / "m.gguf")
    with Model.load(path) as model:
        ids = [int(i) for i in model.logits(model.tokenize("the"))[-1].argsort()[::-1]]
    change = {"tokenizer.ggml.suppress_tokens": [*ids[:3], 10**6]}
    with Model.load(tiny_model.write(path, change)) as model:
        assert model.vocab.suppressed == set(ids[:3])
        sampler = model.sampler(temp=0)
        assert sampler.sample(model.logits(model.tokenize("the"))[-1]) == ids[3]
    with pytest.raises(ModelFileError, match="suppress_tokens"):
        vocab_of(tmp_path, [], suppress_tokens=["a"])
