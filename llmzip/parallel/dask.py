"""Files at fsspec URLs → archives, or back, as tasks of Dask: one a frame, wherever workers are.

    import dask, llmzip.parallel.dask
    tasks = llmzip.parallel.dask.compress(["s3://bucket/a.txt", "s3://bucket/b.txt"], "s3://bucket/llmz")
    sizes = dask.compute(*tasks)

The archives are those that a single process would write. A frame's content is read where it is
coded, its code travels to where the archive is put together. Needs `pip install llmzip[dask]`, and
what fsspec needs for a kind of URL, such as s3fs; workers need llmzip and its models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import fsspec
from dask.delayed import delayed

from llmzip.archive import container
from llmzip.archive.frames import FrameWriter
from llmzip.archive.options import Options
from llmzip.archive.reader import ArchiveReader
from llmzip.archive.writer import ArchiveWriter
from llmzip.coding.frame import Frame


def compress(urls: Sequence[str], folder: str, options: Options | None = None) -> list[Any]:
    """A task for each archive, `folder`/NAME.llmz, which gives its size in bytes."""
    options = options or Options()
    return [_compression(url, f"{folder}/{_name(url)}{container.SUFFIX}", options) for url in urls]


def decompress(urls: Sequence[str], folder: str, options: Options | None = None) -> list[Any]:
    """A task for each archive's content, `folder`/NAME, which gives its size in bytes. Raises
    CorruptArchive where lengths lead astray; the tasks, where content is damaged."""
    options = options or Options()
    found = []
    for url in urls:
        with fsspec.open(url, "rb") as source:
            reader, starts = container.Reader(source), [0]
            while reader.hop():
                starts.append(reader.offset)
        frames = [delayed(_content_of_frame)(url, start, options) for start in starts[:-1]]
        name = _name(url).removesuffix(container.SUFFIX)
        found.append(delayed(_joined)(url, f"{folder}/{name}", frames))
    return found


def _name(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def _compression(url: str, target: str, options: Options) -> Any:
    with fsspec.open(url, "rb") as source:
        size = source.seek(0, 2)
    step = options.frame_size
    count = max(1, -(-size // step))
    frames = [
        delayed(_frame)(url, i * step, step, i == 0, i == count - 1, options) for i in range(count)
    ]
    return delayed(_archive)(url, target, frames, options)


def _read(url: str, start: int, length: int) -> bytes:
    with fsspec.open(url, "rb") as source:
        source.seek(start)
        return bytes(source.read(length))


@cache
def _writer(options: Options) -> FrameWriter:
    return FrameWriter(options)


def _frame(url: str, start: int, length: int, first: bool, last: bool, options: Options) -> Frame:
    return _writer(options).frame(_read(url, start, length), first=first, last=last)


def _archive(url: str, target: str, frames: list[Frame], options: Options) -> int:
    with fsspec.open(url, "rb") as source, fsspec.open(target, "wb") as sink:
        writer = ArchiveWriter(sink, options)
        for frame in frames:
            writer.append(frame, source.read(frame.content_length))
        return int(sink.tell())


def _content_of_frame(url: str, start: int, options: Options) -> bytes:
    with fsspec.open(url, "rb") as source:
        reader = ArchiveReader(source, options)
        reader.seek(start)
        return reader.read_frame() or b""


def _joined(url: str, target: str, contents: list[bytes]) -> int:
    """Verified once more, as a whole, before a target is begun."""
    with fsspec.open(url, "rb") as source:
        reader = container.Reader(source)
        for content in contents:
            frame = reader.next_frame()
            assert frame is not None
            reader.accept(frame, content)
        reader.next_frame()
    with fsspec.open(target, "wb") as sink:
        sink.writelines(contents)
    return reader.offset
