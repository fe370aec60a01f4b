"""Python loops → machine code, by numba, cached on disk if a folder is writable.

Without `fastmath`, numba neither reorders nor contracts: each operation is the IEEE-754 one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import config, event
from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys
from numba.extending import intrinsic

from llmzip.folders import source_stamp, writable_cache

Function = TypeVar("Function", bound=Callable[..., Any])

_SILENCE = 2.0  # seconds of compiling before a message is logged
_settings: Any = config  # untyped in numba
_runtime: Any = rtsys
_log = logging.getLogger("llmzip")


def compiled(function: Function) -> Function:
    """The function, compiled at its first call. It releases the GIL."""
    return _compiled(function)


def compiled_in_place(function: Function) -> Function:
    """`compiled`, for functions that neither make nor return arrays, but write into those given.

    They count no references. Otherwise numba counts every array at every call of a part, by atomic
    operations, which took a fifth of the time of mixing.
    """
    return _compiled(function, _nrt=False)


def inlined(function: Function) -> Function:
    """A part of compiled functions, inlined where it is called."""
    return _inlined(function)


def inlined_in_place(function: Function) -> Function:
    """A part of functions that are `compiled_in_place`, inlined where it is called."""
    return _inlined(function, _nrt=False)


def inlined_for_integers(function: Function) -> Function:
    """`inlined_in_place`, for floats from which contraction gives the same integers."""
    return _inlined(function, fastmath={"contract"}, _nrt=False)


def compiled_for_integers(function: Function) -> Function:
    """`compiled_in_place`, for floats that hold integers with exact sums: any order of summation
    and any contraction gives the same."""
    return _compiled(function, fastmath={"contract", "reassoc"}, _nrt=False)


def emit_prefetch(builder: Any, address: Any, level: int = 1) -> None:
    """LLVM's code for `prefetch`, into the first or second cache."""
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
    to_read, to_keep, data = number(0), number(4 - level), number(1)
    builder.call(prefetch, [builder.inttoptr(address, pointer), to_read, to_keep, data])


def _prefetch_into(level: int) -> Any:
    """An intrinsic that fetches the line at an address into the first or second cache; an address
    that does not exist does no harm."""

    def typed(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit_prefetch(builder, arguments[0], level)
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return intrinsic(typed)


prefetch: Any = _prefetch_into(1)
prefetch_far: Any = _prefetch_into(2)


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    dispatcher = njit(**options)(function)
    # without a writable folder, each process compiles the function again
    with contextlib.suppress(RuntimeError), _folder_for(function) as found:
        if found:
            dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call]
    result: Function = dispatcher
    return result


def _inlined(function: Function, **options: Any) -> Function:
    dispatcher: Any = njit(forceinline=True, error_model="numpy", **options)(function)
    return dispatcher  # type: ignore[no-any-return]


@inlined_in_place
def address(array: np.ndarray) -> int:
    """Of its first byte. As numba has it, it is unsigned, and its sum with an integer a float."""
    found: int = np.int64(array.ctypes.data)
    return found


@contextlib.contextmanager
def _folder_for(function: Callable[..., Any]) -> Iterator[bool]:
    """Set the folder for the compiled code of a function, inside the block; False if there is none.

    It is NUMBA_CACHE_DIR, else that of the source, else one in the user's cache folder. Numba's own
    third choice depends on HOME, and would write to a folder `~` if HOME is not set.
    """
    given = _settings.CACHE_DIR
    source = os.path.dirname(function.__code__.co_filename)
    if given or os.access(source, os.W_OK):
        yield True
        return
    folder = writable_cache("numba")
    _settings.CACHE_DIR = str(folder or "")
    try:
        yield folder is not None
    finally:
        _settings.CACHE_DIR = given


def is_cached(function: Callable[..., Any]) -> bool:
    """Whether some code of a compiled function is on disk, of these sources and this processor; or
    none can be."""
    cache = getattr(function, "_cache", None)
    return not isinstance(cache, _Cache) or cache.holds_any()


class _Cache(FunctionCache):
    """A cache on disk that may be missing, damaged, or written by several processes at once; then
    the function is compiled again."""

    def holds_any(self) -> bool:
        file: Any = self._cache_file
        try:
            wanted = self._index_key(None, cpu_target.target_context.codegen())[1:]
            found = file._load_index()
        except Exception:  # unpickling damaged files raises anything
            return False
        return any(key[1:] == wanted for key in found)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """The code holds that of functions from other modules (`inlined`), of this package or
        beside the function's, so it is of no use once one of these has changed."""
        key = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        folder = os.path.dirname(self._py_func.__code__.co_filename)
        with os.scandir(folder) as entries:
            modules = [(e.name, e.stat()) for e in entries if e.name.endswith(".py")]
        stamps = sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in modules)
        return (*key, tuple(stamps), source_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """As numba's, but the context is not refreshed: that loads what compiling needs, which
        takes most of a second, and of which compiled code needs the runtime alone."""
        try:
            _runtime.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                found = self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception:  # unpickling damaged files raises anything
            return None
        # processes that save code for different types at the same time can mix up its files
        if found is not None and tuple(found.signature.args) != tuple(_arguments(sig)):
            return None
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        file: Any = self._cache_file
        for _ in range(2):
            try:
                super().save_overload(sig, data)  # type: ignore[no-untyped-call]
                return
            except OSError as error:  # a full disk
                _log.debug("compiled code was not cached: %s", error)
                return
            except Exception as error:  # a damaged index, which is then made anew
                _log.debug("the index of compiled code is damaged: %s", error)
                with contextlib.suppress(OSError):
                    os.unlink(file._index_path)


def _arguments(signature: Any) -> Any:
    return getattr(signature, "args", signature)


class _Notice(event.Listener):
    """Logs a message, once per process, if compiling takes long."""

    def __init__(self) -> None:
        self._started = self._active = 0

    def on_start(self, event: Any) -> None:
        self._started, self._active = self._started + 1, self._active + 1
        if self._started == 1:
            timer = threading.Timer(_SILENCE, self._log_message)
            timer.daemon = True
            timer.start()

    def on_end(self, event: Any) -> None:
        self._active -= 1

    def _log_message(self) -> None:
        if self._active:
            _log.info("compiling for this processor, once; this takes about fifteen seconds")


_register: Any = event.register
_register("numba:compile", _Notice())
