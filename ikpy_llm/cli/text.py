"""Texts that commands read and write: files, escapes, stdout."""

import sys

from ikpy_llm.errors import IkpyError

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def unescape(text: str) -> str:
    r"""Resolve \n \r \t \' \" \\ and \xHH as llama.cpp does; any other backslash stays."""
    import re

    def value(match):
        key = match[1]
        return ESCAPES[key] if key in ESCAPES else chr(int(key[1:], 16))

    return re.sub(r"""\\([nrt'"\\]|x[0-9a-fA-F]{2})""", value, text)


def read_file(flag: str, path: str) -> str:
    """The text of a file that a flag names, as it is."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise IkpyError(f"{flag} {path}: {getattr(error, 'strerror', None) or error}") from None


def write(text: str) -> None:
    """To stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
