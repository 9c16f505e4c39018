"""Vocabularies: from text to token ids and back, one file for each kind of GGUF."""
