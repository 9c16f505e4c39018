"""Sampling: from logits to the next token. Imports nothing of the engine."""
