"""Texts that commands read and write: files, JSON, escapes, words of the command line, stdout."""

import os
import sys

from ikpy_llm.errors import IkpyError, printable

ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "'": b"'", '"': b'"', "\\": b"\\"}
# Bytes of a text from a file or from stdin: twenty times what a context of a million tokens holds, and a bound for
# files without an end, such as devices.
MOST_BYTES = 64 << 20
CHUNK = 1 << 20  # bytes read at once
_stdin_taken = ""  # the flag that has read stdin


def unescape(text: str) -> str:
    r"""Resolve \n \r \t \' \" \\ and \xHH as llama.cpp does; any other backslash stays.

    \xHH is a byte, so that \xe2\x82\xac is the euro sign.
    """
    import re

    def value(match):
        key = match[1].decode()
        return ESCAPES[key] if key in ESCAPES else bytes([int(key[1:], 16)])

    return _text_of(re.sub(rb"""\\([nrt'"\\]|x[0-9a-fA-F]{2})""", value, _bytes_of(text)))


def word(text: str) -> str:
    """A text of the command line as it was meant: what the locale could not decode is UTF-8."""
    return text if text.isascii() else _text_of(_bytes_of(text))


def _bytes_of(text: str) -> bytes:
    """UTF-8; of characters that the locale could not decode, the bytes that they came as."""
    if any("\udc80" <= c <= "\udcff" for c in text):  # then the locale's own encoding is no UTF-8
        try:
            return os.fsencode(text)
        except UnicodeEncodeError:
            pass
    return text.encode("utf-8", "surrogateescape")


def _text_of(data: bytes) -> str:
    """The text of UTF-8; what is none becomes U+FFFD, with a warning."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        from ikpy_llm.cli import console

        console.note(f"a text of the command line is not UTF-8 (byte {data[error.start]:#04x}); U+FFFD stands for it")
        return data.decode("utf-8", "replace")


def read_file(flag: str, path: str, exact: bool = False) -> str:
    """The text of a file that a flag names, `-` is stdin; exact: line ends stay as they are. IkpyError for a file that
    cannot be read, for more than MOST_BYTES, and for what is not UTF-8.
    """
    if path == "-":
        return read_stdin(f"{flag} -", exact)
    try:
        with open(path, "rb") as file:
            return _read(f"{flag} {path}", file, exact)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise IkpyError(f"{flag} {path}: {getattr(error, 'strerror', None) or error}") from None


def read_stdin(flag: str, exact: bool = True) -> str:
    """All of stdin, which only one flag can have."""
    global _stdin_taken
    if _stdin_taken:
        raise IkpyError(f"{flag}: stdin has been read by {_stdin_taken}")
    _stdin_taken = flag
    return _read(flag, sys.stdin.buffer, exact)


def _read(what: str, file, exact: bool) -> str:
    """The text of an open file of bytes; `what` names it in errors."""
    data = bytearray()
    while len(data) <= MOST_BYTES:
        part = file.read(CHUNK)
        data += part
        if len(part) < CHUNK:  # the end; asking again would wait for a second one on a terminal
            break
    if len(data) > MOST_BYTES:
        raise IkpyError(f"{what}: more than {MOST_BYTES >> 20} MiB; a text of that many bytes at most is accepted")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise IkpyError(f"{what}: not UTF-8: {error}") from None
    return text if exact else text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(flag: str, text: str):
    """The value of a JSON text that a flag has; IkpyError for what is no JSON, and for more depth than Python reads."""
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise IkpyError(f"{flag} is not JSON: {error}") from None
    except RecursionError:
        raise IkpyError(f"{flag} is not JSON that can be read: it has too many brackets in each other") from None


def write(text: str) -> None:
    """To stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def stream(model, pieces, head: str = ""):
    """Write `head`, and pieces as they come; the value of their generator. It is closed at the end, after Ctrl-C too.

    On a terminal the head comes with the first piece, as progress is shown where it would stand, and control characters
    of the pieces are escaped.
    """
    from ikpy_llm.cli import console

    if head and not sys.stderr.isatty():
        write(head)
        head = ""
    try:
        safe = printable if sys.stdout.isatty() else str  # a pipe gets the text as it is
        with console.Progress() as progress:
            model.while_reading(progress)
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    write(head)
                    return end.value
                model.while_reading(None)  # a bar in the middle of a text would erase a line of it
                write(head + safe(piece))
                head = ""
    finally:
        model.while_reading(None)
        pieces.close()
