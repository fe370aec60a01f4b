"""Many files → worker processes or ranks → the bytes that a single process would write."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from llmzip.archive.options import Options
from llmzip.errors import LlmzipError
from llmzip.inference.base import cores_of_machine
from llmzip.parallel.ranks import Heartbeats, Rank, current_rank
from llmzip.parallel.tasks import Job, assemble, is_finished, run_task, tasks_of

_POLL = 0.1  # seconds between looks for frames of other ranks


def run(
    jobs: Sequence[Job],
    options: Options,
    *,
    decode: bool = False,
    workers: int = 1,
    rank: Rank | None = None,
    skip: Container[Job] = (),
    finished: Callable[[Job], None] = lambda job: None,
    progress: Callable[[int], None] = lambda content: None,
) -> None:
    """Do all jobs in `workers` processes, as one of the launcher's ranks if there are several.

    Tasks are assigned to ranks round-robin; rank 0 writes the targets. Jobs to `skip` count as
    well, so that a rank that starts late, when some targets exist, deals in the same way.
    `finished` is called for each target, by rank 0; `progress` with bytes of content, by every
    rank. `options.force` overwrites targets. Raises LlmzipError, OSError; finished frames are
    kept, and a second call continues from there.
    """
    this = rank or current_rank()
    tasks = {job: tasks_of(job, options, decode) for job in jobs}
    every_task = [task for job in jobs for task in tasks[job]]
    owner = {task: i % this.world_size for i, task in enumerate(every_task)}
    folder = jobs[0].beside("ranks") if jobs else Path(os.devnull)
    with Heartbeats(folder, this if jobs else Rank()) as heartbeats, _pool(workers, this) as pool:
        pending = {
            task: pool.submit(run_task, task, options)
            for task in every_task
            if owner[task] == this.rank and task.job not in skip
        }
        if this.world_size > 1:  # own tasks first, before waiting for others
            for task in list(pending):
                progress(_result(pending.pop(task)))
        for job in jobs if this.rank == 0 else ():
            if job in skip:
                continue
            for task in tasks[job]:
                if task in pending:
                    progress(_result(pending.pop(task)))
                    continue
                while not is_finished(task, options):
                    heartbeats.require(owner[task])
                    time.sleep(_POLL)
            assemble(job, tasks[job], options)
            finished(job)


def _result(future: Future[int]) -> int:
    try:
        return future.result()
    except BrokenProcessPool:
        raise LlmzipError(
            "a worker process died, perhaps for lack of memory; finished frames are kept: run the "
            "same command again to go on"
        ) from None


class _InProcess:
    """An executor without processes."""

    def submit(self, function: Callable[..., int], *arguments: Any) -> Future[int]:
        return _Lazy(function, arguments)


class _Lazy(Future[int]):
    """Computes when the result is asked for, so that targets are finished one after the other."""

    def __init__(self, function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self._function, self._arguments = function, arguments

    def result(self, timeout: float | None = None) -> int:
        return self._function(*self._arguments)


@contextlib.contextmanager
def _pool(workers: int, this: Rank) -> Iterator[Any]:
    if workers > 1:
        with processes(workers, this.local_world_size) as pool:
            yield pool
        return
    if this.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        _set_threads(max(1, cores_of_machine() // this.local_world_size))
    yield _InProcess()


@contextlib.contextmanager
def processes(count: int, pools: int = 1) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that share the cores with the other `pools` of this machine."""
    threads = max(1, cores_of_machine() // (count * pools))
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    pool = ProcessPoolExecutor(count, context, initializer=_set_threads, initargs=(threads,))
    try:
        yield pool
    finally:
        running = list((getattr(pool, "_processes", None) or {}).values())  # shutdown forgets them
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()


def _set_threads(threads: int) -> None:
    import torch

    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of tokenizers
    torch.set_num_threads(threads)
