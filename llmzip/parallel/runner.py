"""Many files, in frames → workers or ranks → the bytes that a single process would write.

The unit of work is a frame, so that a large file is spread, too. Finished frames lie in a folder
beside the target, named `.<target>.frames`, each verified by a digest: processes meet nowhere else,
whether they are workers of one command or ranks on machines that share a file system, and what an
interrupted run has done is not done again. Knows nothing of models' insides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from llmzip.archive import container
from llmzip.archive.frames import FrameWriter
from llmzip.archive.options import Options
from llmzip.archive.reader import ArchiveReader
from llmzip.archive.writer import ArchiveWriter
from llmzip.coding.frame import Frame
from llmzip.errors import LlmzipError
from llmzip.output import write, writing

_BEAT = 1.0  # seconds between signs of life of a rank
_PATIENCE = 60.0  # seconds without one, after which it is taken for dead
_LOOK = 0.1  # seconds between looks for frames of others
_DIGEST = 16
_CHUNK = 1 << 20
# of Options, what the bytes of an archive depend on beside the model
_DECISIVE = ("activations", "context", "frame_size", "memory", "same_environment", "stream_tokens",
             "streams")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Of this process among those that share the work."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place() -> Place:
    """As torchrun and `accelerate launch` tell it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):
        return Place()
    return Place(rank, size, local_rank, local_size)


def device_of(here: Place, device: str) -> str:
    """A rank's own GPU, where "cuda" is asked for."""
    return f"cuda:{here.local_rank}" if here.size > 1 and device == "cuda" else device


@dataclass(frozen=True)
class Job:
    """A file, and what becomes of it."""

    source: Path
    target: Path

    @property
    def spool(self) -> Path:
        return self.target.parent / f".{self.target.name[:200]}.frames"


@dataclass(frozen=True)
class Task:
    """A frame of a job: bytes `start` to `start + length` of the content."""

    job: Job
    number: int
    start: int
    length: int
    first: bool
    last: bool

    @property
    def path(self) -> Path:
        return self.job.spool / f"{self.number}"


def tasks_of(job: Job, options: Options, decode: bool) -> list[Task]:
    """Raises LlmzipError where an archive's lengths lead astray, OSError."""
    if decode:
        return _tasks_of_archive(job)
    size, step = job.source.stat().st_size, options.frame_size
    count = max(1, -(-size // step))
    return [
        Task(job, i, i * step, min(step, size - i * step), i == 0, i == count - 1)
        for i in range(count)
    ]


def _tasks_of_archive(job: Job) -> list[Task]:
    found: list[Task] = []
    with job.source.open("rb") as source:
        reader = container.Reader(source)
        while True:
            number, start = len(found), reader.offset
            if not reader.hop():
                break
            found.append(Task(job, number, start, reader.offset - start, number == 0, False))
    return [*found[:-1], replace(found[-1], last=True)]


# -- what a process does with a task ---------------------------------------------------------------


def do(task: Task, options: Options, decode: bool) -> int:
    """Leave the task's result in the spool, unless it is there → bytes of content."""
    key = _key(task, options, decode)
    if _load(task.path, key) is None:
        result = _decoded(task, options) if decode else _encoded(task, options)
        _store(task.path, key, *result)
    return task.length


def _key(task: Task, options: Options, decode: bool) -> str:
    """Of all that the result depends on: it is not taken for that of another content or model."""
    hasher = hashlib.blake2b(digest_size=_DIGEST)
    about = [task.number, task.start, task.length, task.first, task.last, decode]
    about += [getattr(options, name) for name in _DECISIVE]
    hasher.update(repr(about).encode() + _model_digest(options.model, decode))
    hasher.update(_whole_digest(task.job.source) if decode else _content(task))
    return hasher.hexdigest()


@cache
def _model_digest(name: str | None, decode: bool) -> bytes:
    from llmzip import models

    return (
        b"" if decode and name is None else models.load(name or models.DEFAULT, exact=True).digest
    )


@cache
def _whole_digest(path: Path) -> bytes:
    hasher = hashlib.blake2b()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            hasher.update(part)
    return hasher.digest()


def _content(task: Task) -> bytes:
    with task.job.source.open("rb") as file:
        file.seek(task.start)
        content = file.read(task.length)
    if len(content) != task.length:
        raise LlmzipError(f"{task.job.source} became shorter meanwhile")
    return content


@cache
def _frame_writer(options: Options) -> FrameWriter:
    return FrameWriter(options)


def _encoded(task: Task, options: Options) -> tuple[dict[str, Any], bytes]:
    frame = _frame_writer(options).frame(_content(task), first=task.first, last=task.last)
    about = {field.name: getattr(frame, field.name) for field in fields(frame)}
    return about, about.pop("payload")


def _decoded(task: Task, options: Options) -> tuple[dict[str, Any], bytes]:
    with task.job.source.open("rb") as source:
        reader = ArchiveReader(source, options)
        reader.seek(task.start)
        return {}, reader.read_frame() or b""


def _store(path: Path, key: str, about: dict[str, Any], data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"key": key, **about}).encode() + b"\n"
    digest = hashlib.blake2b(head + data, digest_size=_DIGEST).digest()
    write(path, digest + head + data)


def _load(path: Path, key: str) -> tuple[dict[str, Any], bytes] | None:
    """What was stored under that key; None if nothing was, or not all of it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, rest = content[:_DIGEST], content[_DIGEST:]
    if hashlib.blake2b(rest, digest_size=_DIGEST).digest() != digest:
        return None
    head, _, data = rest.partition(b"\n")
    about = json.loads(head)
    return (about, data) if about.pop("key") == key else None


def _assemble(job: Job, tasks: Sequence[Task], options: Options, decode: bool, force: bool) -> None:
    """The target, of its finished frames; then the spool goes."""
    with writing(job.target, overwrite=force, like=job.source) as sink:
        if decode:
            _join(job, tasks, options, sink)
        else:
            writer = ArchiveWriter(sink, options)
            for task in tasks:
                about, payload = _found(task, options, decode)
                writer.append(Frame(payload=payload, **about), _content(task))
    shutil.rmtree(job.spool, ignore_errors=True)


def _join(job: Job, tasks: Sequence[Task], options: Options, sink: Any) -> None:
    with job.source.open("rb") as source:
        reader = container.Reader(source)
        for task in tasks:
            frame = reader.next_frame()
            _, content = _found(task, options, True)
            assert frame is not None
            reader.accept(frame, content)  # which vouches for each and for the whole
            sink.write(content)
        reader.next_frame()


def _found(task: Task, options: Options, decode: bool) -> tuple[dict[str, Any], bytes]:
    found = _load(task.path, _key(task, options, decode))
    if found is None:
        raise LlmzipError(f"{task.job.source} changed, or frames were lost; run this once more")
    return found


# -- who does which tasks ------------------------------------------------------------------------


def run(
    jobs: Sequence[Job],
    options: Options,
    *,
    decode: bool = False,
    workers: int = 1,
    here: Place | None = None,
    skip: Container[Job] = (),
    finished: Callable[[Job], None] = lambda job: None,
    progress: Callable[[int], None] = lambda content: None,
) -> None:
    """All jobs, by this process, `workers` of its own, or the ranks that it is one of.

    `finished` is told of each target, by rank 0 alone; `progress` of bytes of content, by every
    rank. `options.force` overwrites targets. Jobs to `skip` count only in who does what, which is
    so the same for a rank that comes late, when some targets are there already. Raises LlmzipError,
    OSError; what was finished by then stays, and a second run goes on from there.
    """
    here = here or place()
    plan = [(job, tasks_of(job, options, decode)) for job in jobs]
    todo = [task for _, tasks in plan for task in tasks]
    owner = {task: i % here.size for i, task in enumerate(todo)}
    signs = _Signs(jobs, here)
    with signs, _pool(workers, here) as pool:
        doing = {
            task: pool.submit(do, task, options, decode)
            for task in todo
            if owner[task] == here.rank and task.job not in skip
        }
        if here.size > 1:  # first one's own, as others are waited for
            for task in list(doing):
                progress(_result(doing.pop(task)))
        for job, tasks in plan if here.rank == 0 else ():
            if job in skip:
                continue
            for task in tasks:
                if task in doing:
                    progress(_result(doing.pop(task)))
                else:
                    signs.wait_for(task, owner[task], _key(task, options, decode))
            _assemble(job, tasks, options, decode, options.force)
            finished(job)


def _result(future: Future[int]) -> int:
    try:
        return future.result()
    except BrokenProcessPool:
        raise LlmzipError(
            "a worker process died, perhaps for lack of memory; finished frames are kept: run this "
            "once more to go on"
        ) from None


class _Alone:
    """Does things at once, in this process."""

    def submit(self, work: Callable[..., int], *arguments: Any) -> Future[int]:
        return _Lazy(work, arguments)


class _Lazy(Future[int]):
    """Done when its result is asked for, so that targets appear as they are finished."""

    def __init__(self, work: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self._work, self._arguments = work, arguments

    def result(self, timeout: float | None = None) -> int:
        return self._work(*self._arguments)


@contextlib.contextmanager
def _pool(workers: int, here: Place) -> Iterator[Any]:
    if workers > 1:
        with processes(workers, here.local_size) as pool:
            yield pool
        return
    if here.local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        _settle(max(1, (os.cpu_count() or 1) // here.local_size))
    yield _Alone()


@contextlib.contextmanager
def processes(count: int, times: int = 1) -> Iterator[ProcessPoolExecutor]:
    """So many, which share the cores (with as many elsewhere on this machine, so many `times` in
    all), and end with the block."""
    threads = max(1, (os.cpu_count() or 1) // (count * times))
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    pool = ProcessPoolExecutor(count, context, initializer=_settle, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()


def _settle(threads: int) -> None:
    """So many for all that computes in this process."""
    import torch

    torch.set_num_threads(threads)


class _Signs:
    """Signs of life of ranks, as files; a context manager that gives this rank's."""

    def __init__(self, jobs: Sequence[Job], here: Place) -> None:
        self._here, self._stop = here, threading.Event()
        self._shared = here.size > 1 and bool(jobs)
        target = jobs[0].target if jobs else Path(".")
        self._folder = target.parent / f".{target.name[:200]}.ranks"
        if self._shared:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._seen: dict[int, tuple[str, float]] = {}  # by rank: its last sign, and when it came

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._beat, daemon=True)
        if self._shared:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._shared:
            self._thread.join()
        if self._here.rank == 0:  # an earlier run may have left it
            shutil.rmtree(self._folder, ignore_errors=True)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT):
            with contextlib.suppress(OSError):
                (self._folder / f"{self._here.rank}").write_text(f"{time.time()}")

    def wait_for(self, task: Task, rank: int, key: str) -> None:
        """Until another rank has finished a task. Raises LlmzipError if it seems to be dead."""
        while _load(task.path, key) is None:
            said = ""
            with contextlib.suppress(OSError):
                said = (self._folder / f"{rank}").read_text()
            before, when = self._seen.get(rank, (None, 0.0))
            if said != before:
                self._seen[rank] = said, time.monotonic()
            elif time.monotonic() - when > _PATIENCE:
                raise LlmzipError(
                    f"rank {rank} has given no sign of life for {_PATIENCE:.0f} s; finished frames "
                    "are kept: run this once more to go on"
                )
            time.sleep(_LOOK)
