"""A tiny llama to chat with: token i is chr(33 + i), then come three special tokens; it has a chat template."""

from pathlib import Path

import gguf_writer
import tiny_llama

TEMPLATE = "{% for m in messages %}<|u|>{{ m.content }}{% endfor %}<|a|>"
CHAT = [{"role": "user", "content": "AB"}]


def write(path: Path) -> Path:
    """The model in Q8_0."""
    letters = [chr(33 + i) for i in range(tiny_llama.N_VOCAB - 3)]
    meta = tiny_llama.meta() | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["AB", *letters[1:], "<|u|>", "<|e|>", "<|a|>"],
        "tokenizer.ggml.token_type": [1] * len(letters) + [3, 3, 3],
        "tokenizer.ggml.merges": ["A B"],
        "tokenizer.ggml.eos_token_id": tiny_llama.N_VOCAB - 2,
        "tokenizer.chat_template": TEMPLATE,
        "general.name": "Tiny",
    }
    return gguf_writer.write(path, meta, tiny_llama.tensors(meta, ("Q8_0",)))
