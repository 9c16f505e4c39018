"""What other systems lack of Linux: it is said once in the log, and ikpy goes without."""

from __future__ import annotations

import functools
import logging

log = logging.getLogger("ikpy.system")


@functools.cache
def lacks(what: str, so: str) -> None:
    """Say that there is no `what` here, and what follows from that."""
    log.info("this system has no %s: %s", what, so)
