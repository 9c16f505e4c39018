"""All kinds of cases: CASES maps the name of each to its function."""

import fuzz_calls
import fuzz_files
import fuzz_texts
from fuzz_case import CASES, Case, Wrong, one_line

__all__ = ["CASES", "Case", "Wrong", "fuzz_calls", "fuzz_files", "fuzz_texts", "one_line"]
