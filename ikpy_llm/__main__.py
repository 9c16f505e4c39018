"""`python -m ikpy_llm ...` is `ikpy ...`."""

from ikpy_llm.cli import script

script(program="ikpy")
