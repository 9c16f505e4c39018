"""What a forked child gets anew. Above all locks: the thread that held one is not there and never gives it back."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

_locks: weakref.WeakKeyDictionary[object, dict[str, Callable]] = weakref.WeakKeyDictionary()
_calls: weakref.WeakKeyDictionary[object, list[Callable]] = weakref.WeakKeyDictionary()


def lock(owner, name: str, make: Callable) -> None:
    """Set `owner.name` to make(), in this process and again in every child that is forked from it."""
    setattr(owner, name, make())
    _locks.setdefault(owner, {})[name] = make


def call(owner, method: Callable) -> None:
    """Call method(owner) in every forked child, when its locks are there."""
    _calls.setdefault(owner, []).append(method)


def _renew() -> None:
    for owner, locks in list(_locks.items()):
        for name, make in locks.items():
            setattr(owner, name, make())
    for owner, methods in list(_calls.items()):
        for method in methods:
            method(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
