"""Every tensor and every metadata key of a file is claimed by the model, cannot change the result, or is an error."""

from __future__ import annotations

import logging

from ikpy_llm.errors import ModelFileError, shown

log = logging.getLogger("ikpy.session")
NAMED = 8  # things that the warning names


def check(graph, params, file) -> None:
    """ModelFileError for what is left over and would change the result; one warning names the rest of it."""
    ignored = [f"tensor {shown(name)} (zeros)" for name in graph.check_all_claimed()]
    unknown = params.check_all_read()
    if stated := sorted(getattr(file, "overridden", set()).intersection(unknown)):
        raise ModelFileError(f"{file.path}: there is no metadata key {shown(stated[0])} that could be overridden")
    ignored += [f"key {shown(key)} (no engine knows it)" for key in unknown]
    ignored += [f"key {shown(key)} (not UTF-8)" for key in getattr(file, "odd_texts", ())]
    if ignored:
        more = f" and {len(ignored) - NAMED} more" if len(ignored) > NAMED else ""
        log.warning("what changes nothing is ignored: %s%s", ", ".join(ignored[:NAMED]), more)
