"""Files at fsspec URLs ↔ archives, as Dask tasks: one for each frame.

    import dask, llmzip.parallel.dask
    tasks = llmzip.parallel.dask.compress(["s3://bucket/a.txt", "s3://bucket/b.txt"], "s3://bucket/llmz")
    sizes = dask.compute(*tasks)

The archives equal those of a single process. A task reads its frame's content itself and sends the
result to the task that writes the target. Needs `pip install 'llmzip[dask]'` and the fsspec package
of the URLs, such as s3fs; workers need llmzip and its models.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import fsspec
from dask.delayed import delayed

from llmzip.archive import container
from llmzip.archive.options import Options
from llmzip.archive.reader import ArchiveReader
from llmzip.archive.writer import ArchiveWriter
from llmzip.coding.frame import Frame
from llmzip.errors import LlmzipError
from llmzip.parallel.tasks import frame_writer

Coded = tuple[Frame, bytes]  # and a digest of its content


def compress(urls: Sequence[str], folder: str, options: Options | None = None) -> list[Any]:
    """A Dask task for each URL, which writes `folder`/NAME.llmz and returns its size in bytes.

    Raises OSError, LlmzipError; a task raises LlmzipError if its text changes meanwhile.
    """
    options = options or Options()
    if options.same_environment:
        raise LlmzipError("same-environment mode works in one process, not with Dask")
    return [_compression(url, f"{folder}/{_name(url)}{container.SUFFIX}", options) for url in urls]


def decompress(urls: Sequence[str], folder: str, options: Options | None = None) -> list[Any]:
    """A Dask task for each archive, which writes `folder`/NAME and returns its size in bytes.

    Raises OSError, CorruptArchive if lengths are wrong; a task raises CorruptArchive if content is
    damaged.
    """
    options = options or Options()
    found = []
    for url in urls:
        with fsspec.open(url, "rb") as source:
            reader, starts = container.Reader(source), [0]
            while reader.skip_frame():
                starts.append(reader.offset)
        contents = [delayed(_decode)(url, start, options) for start in starts[:-1]]
        name = _name(url).removesuffix(container.SUFFIX)
        found.append(delayed(_write_content)(url, f"{folder}/{name}", contents))
    return found


def _name(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def _compression(url: str, target: str, options: Options) -> Any:
    with fsspec.open(url, "rb") as source:
        size = source.seek(0, 2)
    starts = range(0, max(1, size), options.frame_size)
    frames = [
        delayed(_encode)(url, start, start == 0, start == starts[-1], options) for start in starts
    ]
    return delayed(_write_archive)(url, target, frames, options)


def _encode(url: str, start: int, first: bool, last: bool, options: Options) -> Coded:
    with fsspec.open(url, "rb") as source:
        source.seek(start)
        content = bytes(source.read(options.frame_size))
    frame = frame_writer(options).frame(content, first=first, last=last)
    return frame, hashlib.blake2b(content).digest()


def _write_archive(url: str, target: str, frames: list[Coded], options: Options) -> int:
    """Opens the target when the whole archive is there: what was opened may stay after an error."""
    archive = io.BytesIO()
    writer = ArchiveWriter(archive, options)
    with fsspec.open(url, "rb") as source:
        for frame, digest in frames:
            content = source.read(frame.content_length)
            if hashlib.blake2b(content).digest() != digest:
                raise LlmzipError(f"{url} changed while it was compressed")
            writer.append(frame, content)
    with fsspec.open(target, "wb") as sink:
        return int(sink.write(archive.getbuffer()))


def _decode(url: str, start: int, options: Options) -> bytes:
    with fsspec.open(url, "rb") as source:
        reader = ArchiveReader(source, options)
        reader.seek(start)
        return reader.read_frame() or b""


def _write_content(url: str, target: str, contents: list[bytes]) -> int:
    """Verifies the whole archive before it opens the target."""
    with fsspec.open(url, "rb") as source:
        reader = container.Reader(source)
        for content in contents:
            frame = reader.next_frame()
            assert frame is not None
            reader.verify(frame, content)
        reader.next_frame()  # verifies the trailer
    with fsspec.open(target, "wb") as sink:
        sink.writelines(contents)
    return reader.offset
