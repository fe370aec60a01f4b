"""A file → its frames as tasks, whose results are kept in a folder → the target.

A task is one frame, so that a large file is shared, too. Its result is a file in
`.<target>.frames` beside the target, with a digest. An interrupted run is continued from these.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from llmzip.archive import container
from llmzip.archive.frame_writer import FrameWriter
from llmzip.archive.header import VERSION, prime_digest
from llmzip.archive.options import Options
from llmzip.archive.reader import ArchiveReader
from llmzip.archive.writer import ArchiveWriter
from llmzip.coding.frame import Frame
from llmzip.errors import LlmzipError
from llmzip.exact import ARITHMETIC
from llmzip.folders import source_digest
from llmzip.output import beside, write, writing

_DIGEST_BYTES = 16
_CHUNK = 1 << 20
# what the bytes of an archive depend on, in addition to the model
_KEY_OPTIONS = ("activations", "context", "frame_size", "mixing", "same_environment",
                "stream_tokens", "streams")  # fmt: skip

frame_writer = lru_cache(maxsize=1)(FrameWriter)  # a process holds one model at a time


@dataclass(frozen=True)
class Job:
    """A file, and what it is compressed or decompressed to."""

    source: Path
    target: Path

    def beside(self, suffix: str) -> Path:
        """A hidden folder beside the target, for what belongs to this job until it is done."""
        return beside(self.target, suffix)


@dataclass(frozen=True)
class Task:
    """A frame of a job: bytes `start` to `start + length` of the content."""

    job: Job
    number: int
    start: int
    length: int
    first: bool
    last: bool
    decode: bool  # else encode

    @property
    def path(self) -> Path:
        """The file for the result."""
        return self.job.beside("frames") / f"{self.number}"


def tasks_of(job: Job, options: Options, decode: bool) -> list[Task]:
    """The tasks of a job. Raises LlmzipError if the lengths in an archive are wrong, OSError."""
    if not decode:
        size, step = job.source.stat().st_size, options.frame_size
        starts = [*range(0, size, step), size] if size else [0, 0]
    else:
        starts = [0]
        with job.source.open("rb") as source:
            reader = container.Reader(source)
            while reader.skip_frame():
                starts.append(reader.offset)
    last = len(starts) - 2
    return [
        Task(job, i, start, end - start, i == 0, i == last, decode)
        for i, (start, end) in enumerate(pairwise(starts))
    ]


def run_task(task: Task, options: Options) -> int:
    """Write the task's result, unless it exists; returns its length in bytes of content."""
    content = _content(task)
    key = _key(task, options, content)
    if _load(task.path, key) is None:
        result = _decode(task, options) if task.decode else _encode(task, options, content)
        _store(task.path, key, *result)
    return task.length


def is_finished(task: Task, options: Options) -> bool:
    """Whether the task's result exists, made from the same content, options and model by the same
    code."""
    return _load(task.path, _key(task, options, _content(task))) is not None


def _key(task: Task, options: Options, content: bytes) -> str:
    """A digest of all that the result depends on; `content` is what is encoded."""
    hasher = hashlib.blake2b(source_digest(), digest_size=_DIGEST_BYTES)
    about = [VERSION, ARITHMETIC]
    about += [task.number, task.start, task.length, task.first, task.last, task.decode]
    about += [getattr(options, name) for name in _KEY_OPTIONS]
    hasher.update(repr(about).encode() + prime_digest(options.prime or b""))
    if options.same_environment and not task.decode:
        from llmzip.inference import float_predictor

        hasher.update(json.dumps(float_predictor.environment(options.device)).encode())
    hasher.update(_model_digest(options.model, task.decode))
    hasher.update(_file_digest(task.job.source) if task.decode else content)
    return hasher.hexdigest()


@cache
def _model_digest(name: str | None, decode: bool) -> bytes:
    from llmzip import models
    from llmzip.exact.architecture import LLAMA_TYPES

    if decode and name is None:  # the archive names it
        return b""
    files = models.load(name or models.DEFAULT, exact=True)
    if files.config.get("model_type") in LLAMA_TYPES:
        return files.digest
    return files.digest + version("transformers").encode()  # whose code computes the model


@cache
def _file_digest(path: Path) -> bytes:
    hasher = hashlib.blake2b()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            hasher.update(part)
    return hasher.digest()


def _content(task: Task) -> bytes:
    """What a task encodes; nothing if it decodes."""
    if task.decode:
        return b""
    with task.job.source.open("rb") as file:
        file.seek(task.start)
        content = file.read(task.length)
    if len(content) != task.length:
        raise LlmzipError(f"{task.job.source} became shorter while it was read")
    return content


def _encode(task: Task, options: Options, content: bytes) -> tuple[dict[str, Any], bytes]:
    frame = frame_writer(options).frame(content, first=task.first, last=task.last)
    about = {field.name: getattr(frame, field.name) for field in fields(frame)}
    return about, about.pop("payload")


def _decode(task: Task, options: Options) -> tuple[dict[str, Any], bytes]:
    with task.job.source.open("rb") as source:
        reader = ArchiveReader(source, options)
        reader.seek(task.start)
        return {}, reader.read_frame() or b""


def _store(path: Path, key: str, about: dict[str, Any], data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"key": key, **about}).encode() + b"\n"
    digest = hashlib.blake2b(head + data, digest_size=_DIGEST_BYTES).digest()
    write(path, digest + head + data)


def _load(path: Path, key: str) -> tuple[dict[str, Any], bytes] | None:
    """What was stored with that key; None if nothing was, or the file is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.blake2b(rest, digest_size=_DIGEST_BYTES).digest() != digest:
        return None
    head, _, data = rest.partition(b"\n")
    about = json.loads(head)
    return (about, data) if about.pop("key") == key else None


def assemble(job: Job, tasks: Sequence[Task], options: Options) -> None:
    """Write a job's target from the results of all its tasks, and remove these.

    Raises CorruptArchive if decoded content does not match, LlmzipError if a result is missing,
    FileExistsError without `options.force`.
    """
    join = _join_content if tasks[0].decode else _join_archive
    with writing(job.target, overwrite=options.force, like=job.source) as sink:
        join(job, tasks, options, sink)
    shutil.rmtree(job.beside("frames"), ignore_errors=True)


def _join_archive(job: Job, tasks: Sequence[Task], options: Options, sink: BinaryIO) -> None:
    writer = ArchiveWriter(sink, options)
    for task in tasks:
        content = _content(task)
        about, payload = _result(task, options, content)
        writer.append(Frame(payload=payload, **about), content)


def _join_content(job: Job, tasks: Sequence[Task], options: Options, sink: BinaryIO) -> None:
    with job.source.open("rb") as source:
        reader = container.Reader(source)
        for task in tasks:
            frame = reader.next_frame()
            _, content = _result(task, options, b"")
            assert frame is not None
            reader.verify(frame, content)
            sink.write(content)
        reader.next_frame()  # verifies the trailer


def _result(task: Task, options: Options, content: bytes) -> tuple[dict[str, Any], bytes]:
    found = _load(task.path, _key(task, options, content))
    if found is None:
        raise LlmzipError(
            f"{task.job.source} changed, or finished frames were lost: run the same command again"
        )
    return found
