"""Concatenated archives, some of them damaged → where each of them begins and ends.

Follows the lengths in headers and frames; decodes nothing.
"""

from __future__ import annotations

import io
from functools import partial
from typing import BinaryIO

from llmzip.archive.container import TRAILER_BYTES, has_trailer
from llmzip.archive.frame_header import read_frame_header
from llmzip.archive.header import MAGIC_BYTES, MAGICS, read_exactly, read_header, read_magic
from llmzip.errors import LlmzipError

_CHUNK = 1 << 20
_FRAME_LIMIT = 1 << 18  # frames visited in search of archives: a few seconds


def find_archives(source: BinaryIO) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each archive in a seekable source; the first starts at 0.

    If the lengths of an archive do not lead to its end, it ends at the next header from which
    lengths lead, archive by archive, to the end of the source. (The header of an archive inside a
    stored frame does not lead there.) Zero bytes after the last archive belong to none.
    """
    return _Finder(source).archives()


class _Finder:
    def __init__(self, source: BinaryIO) -> None:
        self._source, self._size = source, source.seek(0, io.SEEK_END)
        self._visited = 0  # frames
        self._reaches_end: dict[int, bool] = {}  # by start: whether lengths lead to the end

    def archives(self) -> list[tuple[int, int]]:
        found, start = [], 0
        while True:
            end = self._end(start)
            if end is None:
                end = self._next_start(start + 1)
            found.append((start, end))
            if end >= self._size or not self._has_magic(end):
                return found
            start = end

    def _has_magic(self, position: int) -> bool:
        self._source.seek(position)
        return read_magic(self._source) in MAGICS

    def _end(self, start: int) -> int | None:
        """Where the archive at `start` ends, if its lengths lead to something that may follow an
        archive: the end of the source, a further archive, or only zeros."""
        self._source.seek(start)
        take = partial(read_exactly, self._source)
        try:
            header = read_header(read_magic(self._source), take)
            length = frames = 0
            last = False
            while not last:
                self._visited += 1
                if self._visited > _FRAME_LIMIT:
                    return None
                found = read_frame_header(take, header)
                end = self._source.seek(found.payload_length + found.checksum_bytes, io.SEEK_CUR)
                if end > self._size:
                    return None
                length += found.frame.content_length
                frames, last = frames + 1, found.frame.last
        except LlmzipError:
            return None
        if has_trailer(length, frames):
            end += TRAILER_BYTES
        if end == self._size or (end < self._size and (self._has_magic(end) or self._zeros(end))):
            return end
        return None

    def _leads_to_end(self, start: int) -> bool:
        starts, position = [], start
        while position not in self._reaches_end:
            starts.append(position)
            end = self._end(position)
            if end is None or end == self._size or not self._has_magic(end):
                self._reaches_end[position] = end is not None
                break
            position = end
        for passed in starts:
            self._reaches_end[passed] = self._reaches_end[position]
        return self._reaches_end[start]

    def _zeros(self, position: int) -> bool:
        self._source.seek(position)
        while data := self._source.read(_CHUNK):
            if data.strip(b"\0"):
                return False
        return True

    def _next_start(self, position: int) -> int:
        """Where the next archive with correct lengths begins, or the source ends."""
        overlap = MAGIC_BYTES - 1
        while position < self._size and self._visited <= _FRAME_LIMIT:
            self._source.seek(position)
            chunk = self._source.read(_CHUNK + overlap)
            at = -1
            while found := [p for m in MAGICS if (p := chunk.find(m, at + 1)) >= 0]:
                at = min(found)
                if self._leads_to_end(position + at):
                    return position + at
            position += _CHUNK
        return self._size
