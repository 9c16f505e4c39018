"""Functions that factories make again and again from the same code and the same values are one function: Numba types
and lowers it once per process, however many kernels use it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import numpy as np
from numba import extending


def identity(value):
    """A key that two values share only if kernels made with them are the same."""
    if isinstance(value, types.FunctionType):
        try:
            cells = tuple(identity(cell.cell_contents) for cell in value.__closure__ or ())
        except ValueError:  # a cell without contents yet
            return Unique()
        return value.__code__, id(value.__globals__), identity(value.__defaults__), cells
    if isinstance(value, (float, np.generic)):
        return type(value), repr(value)  # 0.0 is not -0.0, np.float32(1) not 1
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(identity, value))
    try:
        hash(value)
    except TypeError:
        return Unique()
    return type(value), value


class Unique:
    """A key that equals nothing else."""


def shared(make: Callable) -> Callable:
    """`make(*functions)`, a decorator of functions, which returns what it returned for equal functions before."""
    made: dict = {}

    @functools.wraps(make)
    def decorate(*functions):
        key = tuple(map(identity, functions))
        if key not in made:
            made[key] = make(*functions), functions  # kept alive, so that no id in a key is used again
        return made[key][0]

    return decorate


_intrinsics = {literal: shared(extending.intrinsic(prefer_literal=literal)) for literal in (False, True)}


def intrinsic(function=None, *, prefer_literal: bool = False):
    """numba.extending.intrinsic, shared; with or without arguments."""
    return _intrinsics[prefer_literal](function) if function else _intrinsics[prefer_literal]
