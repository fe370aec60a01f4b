"""Python loops → machine code, by numba, kept on disk where that can be written.

Without `fastmath`, numba neither reorders nor contracts: each operation is the IEEE-754 one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function, compiled at its first call; other threads may run meanwhile."""
    return _compiled(function)


def compiled_for_integers(function: Function) -> Function:
    """The same for floats that hold integers and whose sums are exact, so that any order and
    contraction of them gives the same."""
    return _compiled(function, fastmath={"contract", "reassoc"})


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        result: Function = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to be written to: then each process compiles for itself
        result = njit(**options)(function)
    return result
