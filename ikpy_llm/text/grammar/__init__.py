"""Grammars that bound what is generated: GBNF and JSON schemas, for llguidance."""
