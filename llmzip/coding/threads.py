"""Independent parts of one computation → threads, one a part, that wait for nothing but results.

Streams never meet inside of the model, so each part of them may have a thread of its own. That
scales better than threads inside of every operation, which wait for each other after each one,
and crawl when a core is busy with something else. Knows nothing of what is computed.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 32  # results that a thread computes before they are asked for
_PATIENCE = 0.1  # seconds between looks at whether anyone still wants them
_END = object()


class _Stopped(Exception):
    """In a thread whose result nobody wants any more."""


def in_threads(
    work: Callable[[T, Callable[[], None]], R], items: Sequence[T], threads: int
) -> list[R]:
    """Results of work(item, check) for each item, at most `threads` at a time. Work has to call
    `check` now and then: once anything was raised, here or by any work, it ends it. Raises that."""
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = [pool.submit(work, item, check) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = [f for f in futures if f.done() and f.exception()]
            return [future.result() for future in failed or futures]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class StreamThreads:
    """Threads for `parts` parts of the streams; a context manager.

    Within, each thread's share of the cores is what torch was allowed, if it is loaded and used,
    divided among them.
    """

    def __init__(self, streams: int, cores: int, *, torch: bool = True) -> None:
        """`cores` as `inference.base` counts them; there are never more parts than streams. Without
        `torch`, nothing is set that other threads share."""
        count = max(1, min(cores, streams))
        bounds = [streams * i // count for i in range(count + 1)]
        self.parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        self._cores, self._uses_torch = max(1, cores // count), torch
        self._stop = threading.Event()

    def __enter__(self) -> StreamThreads:
        # torch, if the model needs it: what it may use is a setting of each thread
        torch: Any = sys.modules.get("torch")
        # another thread may be importing it
        loaded = self._uses_torch and hasattr(torch, "get_num_threads")
        self._torch: Any = torch if loaded else None
        if self._torch is None:
            self._pool = ThreadPoolExecutor(len(self.parts))
            return self
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._cores)
        self._pool = ThreadPoolExecutor(
            len(self.parts), initializer=torch.set_num_threads, initargs=(self._cores,)
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._pool.shutdown()
        if self._torch is not None:
            self._torch.set_num_threads(self._before)

    def take_turns(
        self, compute: Callable[[int, T | None], R], take: Callable[[int, R], T | None]
    ) -> None:
        """In rounds, for each part: `compute(part, what take gave)` in a thread of its own, then
        `take(part, result)` in the order of rounds and parts, one at a time, until it gives None.

        The thread of a part does both, so that nothing is handed over: while one part is taken, the
        others compute. All parts must have the same number of rounds. Raises what either raises.
        """
        if len(self.parts) == 1:
            given: T | None = None
            while (given := take(0, compute(0, given))) is not None:
                pass
            return
        turn, taken = threading.Condition(), 0

        def work(part: int) -> None:
            nonlocal taken
            given, number = None, part
            while not self._stop.is_set():
                result = compute(part, given)
                with turn:
                    while taken != number:
                        if self._stop.is_set():
                            return
                        turn.wait(_PATIENCE)
                    given = take(part, result)
                    taken += 1
                    turn.notify_all()
                number += len(self.parts)
                if given is None:
                    return

        def work_or_stop(part: int) -> None:
            try:
                work(part)
            except BaseException:
                self._stop.set()
                raise

        futures = [self._pool.submit(work_or_stop, part) for part in range(len(self.parts))]
        for future in futures:
            future.result()

    def ahead(self, lists: Iterable[list[T]]) -> Iterator[T]:
        """The elements of lists, one after the other, which are made ahead in a thread."""
        results: queue.Queue[Any] = queue.Queue(_AHEAD)

        def put(result: Any) -> None:
            while not self._stop.is_set():
                with contextlib.suppress(queue.Full):
                    results.put(result, timeout=_PATIENCE)
                    break

        def compute() -> None:
            try:
                for result in lists:
                    put(result)
                    if self._stop.is_set():
                        return
            except BaseException as error:  # it is raised where the results are asked for
                put(error)
            else:
                put(_END)

        def wait_for() -> Iterator[T]:
            while (result := results.get()) is not _END:
                if isinstance(result, BaseException):
                    raise result
                yield from result

        self._pool.submit(compute)
        return wait_for()
