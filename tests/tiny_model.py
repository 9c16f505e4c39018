"""A tiny llama with a vocabulary, for the commands: its text is noise, its way through ikpy is real."""

import string
from pathlib import Path

import gguf_writer
import tiny_llama

PIECES = [*string.ascii_letters, *",.;:!?'-+*/()[]", "Ġ", "th", "<|endoftext|>"]  # Ġ is gpt2's space
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": [1] * (len(PIECES) - 1) + [3],
    "tokenizer.ggml.merges": ["t h"],
    "tokenizer.ggml.eos_token_id": len(PIECES) - 1,
}
assert len(PIECES) == tiny_llama.N_VOCAB


def write(path: Path, change: dict | None = None) -> Path:
    """Write the model in Q8_0; `change` overrides metadata, None takes a key out, and the tensors stay as they are."""
    meta = tiny_llama.meta() | {"general.file_type": 7} | VOCABULARY
    tensors = tiny_llama.tensors(meta, ("Q8_0",), seed=1, tied=True)
    meta |= change or {}
    return gguf_writer.write(path, {k: v for k, v in meta.items() if v is not None}, tensors)
