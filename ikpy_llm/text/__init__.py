"""Texts: vocabularies, chat templates, grammars and stop strings. Imports nothing of the engine."""
