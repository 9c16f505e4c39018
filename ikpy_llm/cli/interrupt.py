"""Ctrl-C ends a command with code 130 and without a traceback, also while Python imports what the command needs."""

import _signal as signal  # the half of it that is written in C: the other one's imports take as long as ours

came = False  # since `remember`


def _installed(old, new) -> bool:
    """Put `new` in the place of `old`; False where there is another handler (ignored, or a program's own)."""
    if signal.getsignal(signal.SIGINT) is not old:
        return False
    try:
        signal.signal(signal.SIGINT, new)
    except ValueError:  # not in the main thread
        return False
    return True


def _remember(number, frame) -> None:
    global came
    came = True
    raise KeyboardInterrupt


def remember() -> None:
    """From now on `came` says whether it was pressed: where modules are imported another exception may come of it."""
    _installed(signal.default_int_handler, _remember)


def as_exception() -> None:
    """From now on it is an exception again."""
    if ENDS_AT_ONCE:
        _installed(signal.SIG_DFL, signal.default_int_handler)


# From the import of this file on nothing has been begun that would have to be ended well.
ENDS_AT_ONCE = _installed(signal.default_int_handler, signal.SIG_DFL)
