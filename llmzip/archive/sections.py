"""Archives that follow each other in a source, some damaged → where each of them begins and ends.

By the lengths of headers and frames alone. Knows nothing of what a frame means.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

from llmzip.archive import container
from llmzip.archive.header import MAGIC, SHORT_MAGIC, read_header, read_magic
from llmzip.coding.frame import SMALL
from llmzip.errors import LlmzipError, TruncatedArchive

_CHUNK = 1 << 20
_MOST_HOPS = 1 << 18  # over frames in search of the next archive: a few seconds


def split(source: BinaryIO) -> list[tuple[int, int]]:
    """First byte and end of each archive in a seekable source; the first begins at 0.

    An archive whose lengths don't lead to its end ends where the next one begins: there a header
    stands from which lengths lead, archive by archive, to the source's end. (An archive within
    a stored frame of another would not lead there.) Zero bytes behind the last archive belong
    to none.
    """
    return _Splitter(source).sections()


class _Splitter:
    def __init__(self, source: BinaryIO) -> None:
        self._source, self._size = source, source.seek(0, io.SEEK_END)
        self._hops = 0
        self._leading: dict[int, bool] = {}  # whether lengths lead from there to the end

    def sections(self) -> list[tuple[int, int]]:
        found, start = [], 0
        while True:
            end = self._end(start)
            if end is None:
                end = self._next_start(start + 1)
            found.append((start, end))
            if end >= self._size or not self._has_magic(end):
                return found
            start = end

    def _has_magic(self, at: int) -> bool:
        self._source.seek(at)
        return read_magic(self._source.read) in (MAGIC, SHORT_MAGIC)

    def _end(self, start: int) -> int | None:
        """Where the archive at `start` ends, if its lengths lead to what may follow an end: the
        source's, another archive, or zeros alone."""
        self._source.seek(start)
        take = _taking(self._source)
        try:
            header = read_header(read_magic(take), take)
            length = frames = 0
            last = False
            while not last:
                self._hops += 1
                if self._hops > _MOST_HOPS:
                    return None
                if header.short:
                    frame, payload_length, _ = container.read_short_fields(take)
                else:
                    frame, payload_length, _ = container.read_fields(take, header.model is not None)
                checks = container.CHECK_BYTES * (1 + (frame.content_length > SMALL))
                end = self._source.seek(payload_length + checks, io.SEEK_CUR)
                if end > self._size:
                    return None
                length, frames, last = length + frame.content_length, frames + 1, frame.last
        except LlmzipError:
            return None
        if container.has_trailer(length, frames):
            end += container.TRAILER_BYTES
        if end == self._size or (end < self._size and (self._has_magic(end) or self._zeros(end))):
            return end
        return None

    def _leads_to_the_end(self, start: int) -> bool:
        passed, at = [], start
        while at not in self._leading:
            passed.append(at)
            end = self._end(at)
            if end is None or end == self._size or not self._has_magic(end):
                self._leading[at] = end is not None
                break
            at = end
        for place in passed:
            self._leading[place] = self._leading[at]
        return self._leading[start]

    def _zeros(self, at: int) -> bool:
        self._source.seek(at)
        while data := self._source.read(_CHUNK):
            if data.strip(b"\0"):
                return False
        return True

    def _next_start(self, at: int) -> int:
        """Where the next archive with true lengths begins, or the source ends."""
        overlap = len(MAGIC) - 1
        while at < self._size and self._hops <= _MOST_HOPS:
            self._source.seek(at)
            chunk = self._source.read(_CHUNK + overlap)
            place = -1
            while True:
                places = [p for m in (MAGIC, SHORT_MAGIC) if (p := chunk.find(m, place + 1)) >= 0]
                if not places:
                    break
                place = min(places)
                if self._leads_to_the_end(at + place):
                    return at + place
            at += _CHUNK
        return self._size


def _taking(source: BinaryIO) -> Callable[[int], bytes]:
    """Reads as many bytes as are asked for, or raises TruncatedArchive."""

    def take(size: int) -> bytes:
        data = source.read(size)
        while len(data) < size and (more := source.read(size - len(data))):
            data += more
        if len(data) < size:
            raise TruncatedArchive("the archive ends too early")
        return data

    return take
