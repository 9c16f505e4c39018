"""The errors a user sees: one line each, printed to stderr by the commands, which then exit with code 1."""

SHOWN = 80  # characters of a string from a file that an error message repeats


class IkpyError(Exception):
    """Something the user can act on; the message is one line."""


class ModelFileError(IkpyError):
    """A model file is damaged, hostile or of a kind we do not read."""


class ArgumentError(IkpyError, ValueError):
    """A call got an argument that it does not take."""


# Control characters but for tabs and line ends, as they are written in Python: a terminal obeys them.
_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(9), 11, 12, *range(14, 32), *range(127, 160))}


def printable(text: str) -> str:
    """A line for a terminal with control characters escaped, which may stand in texts of files."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def shown(value, limit: int | None = SHOWN) -> str:
    """`value` for an error message: escaped to printable ASCII in quotes, cut to `limit` characters."""
    if isinstance(value, bytes):
        value = value[: 4 * SHOWN].decode("utf-8", "replace")
    if not isinstance(value, str):
        try:
            text = " ".join(repr(value).split())  # those of arrays have several lines
        except Exception:  # an object whose own __repr__ fails
            text = f"<{type(value).__name__}>"
        return text[:limit]
    text = ascii(value if limit is None else value[: limit + 1])[1:-1]
    return f"'{text}'" if limit is None or len(text) <= limit else f"'{text[:limit]}...'"
