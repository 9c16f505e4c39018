"""What other systems lack of Linux: it is said once in the log, and ikpy goes without. What any system may refuse."""

from __future__ import annotations

import functools
import logging
import threading

from ikpy_llm.errors import IkpyError

log = logging.getLogger("ikpy.system")


@functools.cache
def lacks(what: str, so: str) -> None:
    """Say that there is no `what` here, and what follows from that."""
    log.info("this system has no %s: %s", what, so)


def start(thread: threading.Thread, what: str) -> None:
    """Start a thread that is needed for `what`; IkpyError where the system has no more threads."""
    try:
        thread.start()
    except RuntimeError as error:
        raise IkpyError(
            f"no thread can be started for {what}: the limit of processes (ulimit -u) or of memory is reached"
        ) from error
