"""Threads that compute a step of a model together: each some outputs of every product, and some
rows between products (tensor parallelism).

Weights that exceed the caches are then read once for all rows, not once by each thread for its own.
Threads meet some seventy times a step, at a barrier inside of compiled code: they wait for each
other by looking, and leave the processor when that takes long.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmzip.compiled import compiled_in_place

_ARRIVED, _STOPPED, _JOB = 0, 8, 16  # places of 64 bits, 8 in a line of the cache
_WORDS = 24
_LOOKS = 2000  # before a thread that waits lets others run
_LONGEST_WAIT = 20_000  # looks for a job, before the thread sleeps
_PATIENCE = 0.1  # seconds between looks at whether the team is still wanted

# number of the thread, how many there are, address of the integers that they share
Member = tuple[int, int, int]
ALONE: Member = (0, 1, 0)


def available() -> bool:
    """Whether threads can leave the processor here while they wait."""
    return hasattr(os, "sched_yield")


def _typed_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to an integer of 64 bits that threads share → what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


def _typed_load(typing: Any, address: Any) -> Any:
    """An integer of 64 bits that threads share."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


def _typed_yield(typing: Any) -> Any:
    """Let other threads run (POSIX)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        function = builder.module.globals.get("sched_yield") or ir.Function(
            builder.module, kind, "sched_yield"
        )
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


_add: Any = intrinsic(_typed_add)
_load: Any = intrinsic(_typed_load)
_yield: Any = intrinsic(_typed_yield)


@compiled_in_place
def meet(member: Member) -> None:
    """Wait until all threads of the team are here, or it is stopped."""
    _, count, shared = member
    if count == 1:
        return
    before = _add(shared + 8 * _ARRIVED, 1)
    wanted = (before // count + 1) * count
    looks = 0
    while _load(shared + 8 * _ARRIVED) < wanted:
        looks += 1
        if looks > _LOOKS:
            if _load(shared + 8 * _STOPPED):
                return
            _yield()


@compiled_in_place
def _look_for_job(shared: int, done: int) -> int:
    """The number of jobs that were given, once it is not `done`, or after a while."""
    looks = 0
    while looks < _LONGEST_WAIT:
        given: int = _load(shared + 8 * _JOB)
        if given != done or _load(shared + 8 * _STOPPED):
            return given
        looks += 1
        if looks > _LOOKS:
            _yield()
    return done


def run(team: Team | None, function: Callable[..., Any], *arguments: Any) -> None:
    """function(member, …) by a team, or in this thread alone."""
    if team is None:
        function(ALONE, *arguments)
    else:
        team.run(function, *arguments)


class Team:
    """Some threads, the caller's among them; a context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._shared = np.zeros(_WORDS, dtype=np.int64)
        self._address = int(self._shared.ctypes.data)
        self._given = threading.Condition()
        self._job: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
        self._error: BaseException | None = None  # of another thread

    def __enter__(self) -> Team:
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(1, self._count)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        for thread in self._threads:
            thread.join()

    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        """function(member, …) in all threads. It is compiled code, ends with `meet`, and gives
        nothing back. Raises what any of them raises: its part of the result is then missing."""
        with self._given:
            self._job = function, arguments
            self._shared[_JOB] += 1
            self._given.notify_all()
        function((0, self._count, self._address), *arguments)
        if self._error is not None:
            raise self._error

    def _stop(self) -> None:
        with self._given:
            self._shared[_STOPPED] = 1
            self._given.notify_all()

    def _work(self, number: int) -> None:
        done = 0
        while True:
            if _look_for_job(self._address, done) == done:
                with self._given:
                    while self._shared[_JOB] == done and not self._shared[_STOPPED]:
                        self._given.wait(_PATIENCE)
            if self._shared[_STOPPED]:
                return
            done += 1
            assert self._job is not None
            function, arguments = self._job
            try:
                function((number, self._count, self._address), *arguments)
            except BaseException as error:
                self._error = error
                self._stop()
