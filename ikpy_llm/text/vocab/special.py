"""What the texts of tokens say beyond the file's keys: which tokens end a text, and which are read or shown as text.

Many files name one end of text only and give some special tokens the wrong type, so llama.cpp goes by their texts. The
lists and the exemptions here are its own (src/llama-vocab.cpp): a model ends its texts where it ends them there.
"""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type

_EOT = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<EOT>", "_<EOT>")
_EOT += ("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end_of_text|>", "[EOT]", "<end_of_utterance>")
_EOG = (*_EOT, "<|eom_id|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "</s>", "<eos>", "[EOS]", "[e~[")
_EOG += ("<turn|>", "<|tool_response>")

# Role -> texts, best first. A role that a key of the file fills (`<role>_token_id`) is not looked for.
_ROLES = {
    "eot": _EOT,
    "eom": ("<|eom_id|>",),
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>")
    + ("\u2581<PRE>", "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>")
    + ("\u2581<SUF>", "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>")
    + ("\u2581<MID>", "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
ROLES = tuple(_ROLES)
OLD_NAMES = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}  # older keys of the same meaning
_ENDING_ROLES = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")

_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # of gpt-oss: parts of the text it writes
# A text that ends nothing in a vocabulary with all tokens of one of these sets, and its type there. In gpt-oss and
# Solar <|end|> ends a part of a message; in Gemma 4 </s> is a tag of HTML.
_SOLAR = ({"<|flush|>", "<|call|>"}, {"<|flush|>", "<|calls|>"})
_EXEMPT = (
    ("<|end|>", USER_DEFINED, ({"<|return|>", "<|call|>"}, {"<|return|>", "<|calls|>"}, *_SOLAR)),
    ("</s>", NORMAL, ({"<|tool_response>"},)),
)


def special_roles(ids: dict[bytes, int], types: list[int], named: dict[str, int | None]) -> tuple[dict, set[int]]:
    """(id of every role that is filled, ids that end a generation); corrects `types` in place.

    `ids` has the texts, `named` the ids that the file's keys give to roles and to "eos".
    """

    def find(text):
        return ids.get(text.encode())

    def present(texts):
        return all(find(text) is not None for text in texts)

    exempt = {
        find(text): kind
        for text, kind, sets in _EXEMPT
        if find(text) is not None and any(present(texts) for texts in sets)
    }
    roles = {role: i for role, i in named.items() if i is not None}
    for role, texts in _ROLES.items():
        if role not in roles:
            i = next((i for i in map(find, texts) if i is not None and i not in exempt), None)
            if i is not None:
                roles[role], types[i] = i, CONTROL
    by_text = {i for i in map(find, _EOG) if i is not None}
    for i in by_text:
        types[i] = CONTROL
    for i in map(find, _SHOWN):
        if i is not None:
            types[i] = USER_DEFINED
    for i, kind in exempt.items():
        types[i] = kind
    ends = by_text | {roles[role] for role in ("eos", *_ENDING_ROLES) if role in roles}
    return roles, ends - exempt.keys()


def spaces_taken(meta: dict, kind: str) -> tuple[str | None, bool]:
    """(the one token that takes the spaces before it, do special tokens take the spaces after them).

    No key says it; llama.cpp goes by the names of models. `kind` is tokenizer.ggml.model.
    """
    name, architecture, pre = (
        str(meta.get(key, "")) for key in ("general.name", "general.architecture", "tokenizer.ggml.pre")
    )
    name = name.lower()
    if architecture in ("nomic-bert-moe", "jina-bert-v3") or pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code"):
        return "<mask>", False
    if "modern-bert" in (name + " " + architecture):
        return "[MASK]", False
    # Phi 3.5 does not have "phi-3" in its name; Phi 4 mini has phi3 as its architecture, and a gpt2 vocabulary.
    return None, "phi-3" in name or "phi3" in name or (architecture == "phi3" and kind == "llama")
