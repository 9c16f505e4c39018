"""--prompt-cache: a session is read from a file before a run, and written to it when the prompt has been read or, with
--prompt-cache-all, at the end.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from ikpy_llm import files
from ikpy_llm.errors import IkpyError

log = logging.getLogger("ikpy.cli")


def check(options) -> None:
    """IkpyError for flags that go only with the other one, what is not a regular file, and a folder that cannot take
    one.
    """
    for name, given in (("all", options.prompt_cache_all), ("ro", options.prompt_cache_ro)):
        if given and options.prompt_cache is None:
            raise IkpyError(f"--prompt-cache-{name} needs --prompt-cache FNAME")
    if options.prompt_cache is None:
        return
    files.check(options.prompt_cache, flag="--prompt-cache", to_read=options.prompt_cache_ro)


def exists(path: str | None) -> bool:
    """Whether there is a session to go on from; an empty file (of mktemp) is none."""
    return path is not None and os.path.exists(path) and os.path.getsize(path) > 0


@contextlib.contextmanager
def kept(model, options) -> Iterator[list[int]]:
    """Around a run: yields the tokens that the file has; a prompt that begins like them is not read again."""
    path, old = options.prompt_cache, []
    if path is None:
        yield old
        return
    if exists(path):
        old = model.load_session(path)
    log.info("prompt cache: %s: %s", path, f"{len(old)} tokens" if old else "new")

    def save() -> None:
        tokens = model.cached_tokens
        if tokens and old[: len(tokens)] != tokens:  # what the file has already is not written again
            n_bytes = model.save_session(path)
            log.info("prompt cache: %s: %d tokens saved, %.1f MB", path, len(tokens), n_bytes / 1e6)

    if not options.prompt_cache_ro and not options.prompt_cache_all:
        model.after_prompt(save)
    try:
        yield old
    finally:
        if options.prompt_cache_all and not options.prompt_cache_ro:
            save()
