"""Ctrl-C ends a command with code 130 and without a traceback, also while Python imports what the command needs."""

import _signal as signal  # the half of it that is written in C: the other one's imports take as long as ours
import sys
import time

came = False  # since `remember`, and since the user was last asked for something
AGAIN = 1.0  # seconds in which a second Ctrl-C is taken for the first, so that what it ends can be put in order
_when = 0.0


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
    global came, _when
    now = time.monotonic()
    if came and now - _when < AGAIN:
        return
    came, _when = True, now
    raise KeyboardInterrupt


def _lost(what) -> None:
    """The exception came where Python can only report one, as in a destructor: it is raised again a moment later."""
    if not issubclass(what.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    import _thread

    _thread.start_new_thread(_again, (_thread.interrupt_main,))


def _again(interrupt_main) -> None:
    global came
    time.sleep(0.01)
    came = False
    interrupt_main()


def remember() -> None:
    """From now on `came` says whether it was pressed: where modules are imported another exception may come of it."""
    if _installed(signal.default_int_handler, _remember):
        sys.unraisablehook = _lost


def wait_for_next() -> None:
    """What it was pressed for has been done: the next one counts at once."""
    global came
    came = False


def ignore() -> None:
    """The process ends: nothing is left that it could interrupt."""
    _installed(_remember, signal.SIG_IGN)


def as_exception() -> None:
    """From now on it is an exception again."""
    if ENDS_AT_ONCE:
        _installed(signal.SIG_DFL, signal.default_int_handler)


# From the import of this file on nothing has been begun that would have to be ended well.
ENDS_AT_ONCE = _installed(signal.default_int_handler, signal.SIG_DFL)
