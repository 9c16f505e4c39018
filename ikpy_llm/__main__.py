"""`python -m ikpy_llm ...` is `ikpy ...`."""

import sys

from ikpy_llm.cli import main

sys.exit(main(program="ikpy"))
