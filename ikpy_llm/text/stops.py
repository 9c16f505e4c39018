"""Stop strings in a stream of text: found across the borders of tokens, and no part of one ever gets out."""

from collections.abc import Set

from ikpy_llm.arguments import plain, texts, token_ids


def checked_stops(stops) -> tuple[str, ...]:
    """One stop string or several (None: none) as a tuple without empty ones; IkpyError for anything but texts."""
    stops = plain(stops)
    several = (stops,) if isinstance(stops, str) else () if stops is None else stops
    return tuple(text for text in texts("stop", several, "a text or several") if text)


def checked_ends(ends, default) -> frozenset[int]:
    """Ids that end a text; `default` for None."""
    return frozenset(default if ends is None else token_ids("ends", list(ends) if isinstance(ends, Set) else ends))


def ends_of(vocab, stops) -> tuple[frozenset[int], list[str]]:
    """Ids that end a text: the vocabulary's, and stop strings that are such a token; the others of the strings."""
    found, texts = set(vocab.eog), []
    for stop in checked_stops(stops):
        ids = vocab.encode(stop, add_special=False, parse_special=True)
        if len(ids) == 1 and not vocab.token_bytes(ids[0]):
            found.add(ids[0])
        else:
            texts.append(stop)
    return frozenset(found), texts


class StopMatcher:
    """Passes text on until it contains a stop string; `found` is that string then.

    Text that may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stops=()):
        self._stops, self._held = checked_stops(stops), ""
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
