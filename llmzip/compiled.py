"""Python loops → machine code, by numba, kept on disk where that can be written.

Without `fastmath`, numba neither reorders nor contracts: each operation is the IEEE-754 one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from numba import njit
from numba.core import config, event
from numba.core.caching import FunctionCache

from llmzip.folders import writable_cache

Function = TypeVar("Function", bound=Callable[..., Any])

_SILENCE = 2.0  # seconds that compiling may take before it is told
_settings: Any = config  # numba's types say nothing of it
_log = logging.getLogger("llmzip")


def compiled(function: Function) -> Function:
    """The function, compiled at its first call; other threads may run meanwhile."""
    return _compiled(function)


def compiled_for_integers(function: Function) -> Function:
    """The same for floats that hold integers and whose sums are exact, so that any order and
    contraction of them gives the same."""
    return _compiled(function, fastmath={"contract", "reassoc"})


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    dispatcher = njit(**options)(function)
    # without a folder that can be written to, each process compiles for itself
    with contextlib.suppress(RuntimeError), _folder_for(function) as possible:
        if possible:
            dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call]
    result: Function = dispatcher
    return result


@contextlib.contextmanager
def _folder_for(function: Callable[..., Any]) -> Iterator[bool]:
    """Within, numba finds a folder for the code of a function; whether there is one.

    That is NUMBA_CACHE_DIR, else beside the source, else among the user's caches. Numba's own
    third choice is made from HOME, and would write to a folder `~` where there is none.
    """
    given = _settings.CACHE_DIR
    beside = os.path.dirname(function.__code__.co_filename)
    if given or os.access(beside, os.W_OK):
        yield True
        return
    folder = writable_cache("numba")
    _settings.CACHE_DIR = str(folder or "")
    try:
        yield folder is not None
    finally:
        _settings.CACHE_DIR = given


class _Cache(FunctionCache):
    """Code on disk that can be missing, damaged, or of several processes that start at once:
    the worst that comes of it is to compile once more."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception:  # what unpickling makes of damaged files
            return None
        # processes that save code for different types at once can mix up its files
        if found is not None and tuple(found.signature.args) != tuple(_arguments(sig)):
            return None
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except Exception as error:  # a full disk, a damaged index
            _log.debug("compiled code was not kept: %s", error)


def _arguments(signature: Any) -> Any:
    return getattr(signature, "args", signature)


class _Notice(event.Listener):
    """Tells, once in a process, when compiling takes a while."""

    def __init__(self) -> None:
        self._started = self._active = 0

    def on_start(self, event: Any) -> None:
        self._started, self._active = self._started + 1, self._active + 1
        if self._started == 1:
            timer = threading.Timer(_SILENCE, self._tell)
            timer.daemon = True
            timer.start()

    def on_end(self, event: Any) -> None:
        self._active -= 1

    def _tell(self) -> None:
        if self._active:
            _log.info("compiling for this processor, which takes some ten seconds, once")


_register: Any = event.register
_register("numba:compile", _Notice())
