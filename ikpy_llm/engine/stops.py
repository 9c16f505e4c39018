"""Stop strings in a stream of text: found across the borders of tokens, and no part of one ever gets out."""

from ikpy_llm.errors import IkpyError


class StopMatcher:
    """Passes text on until it contains a stop string; `found` is that string then.

    Text that may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stops=()):
        stops = (stops,) if isinstance(stops, str) else tuple(stops or ())
        if not all(isinstance(text, str) for text in stops):
            raise IkpyError(f"stop is {stops!r}; texts are accepted")
        self._stops, self._held = tuple(text for text in stops if text), ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that may be shown after `text` has come; nothing more once a stop string is found."""
        if self.found is not None:
            return ""
        held = self._held + text
        at = min(((held.find(stop), -len(stop), stop) for stop in self._stops if stop in held), default=None)
        if at:
            self._held, self.found = "", at[2]
            return held[: at[0]]
        n = max((_beginning(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - n :]
        return held[: len(held) - n]

    def flush(self) -> str:
        """What is still held back when no more text comes."""
        held, self._held = self._held, ""
        return held


def _beginning(text: str, stop: str) -> int:
    """Characters at the end of the text that are the beginning of the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
