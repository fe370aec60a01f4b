"""A damaged archive → its intact frames, and where content is missing (docs/format.md, section 9).

Returns only content whose Content_Checksum matches.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from llmzip.archive.boundaries import find_archives
from llmzip.archive.container import HASH_BYTES
from llmzip.archive.frame_header import LONGEST_FRAME_HEADER
from llmzip.archive.frame_reader import FrameReader
from llmzip.archive.frame_search import TOO_EARLY, FrameLocation, FrameSearch
from llmzip.archive.options import Options
from llmzip.coding.frame import MODEL
from llmzip.coding.progress import Progress
from llmzip.errors import CorruptArchive, UnsupportedArchive

_MULTIPLES = 16  # of the usual frame length that are tried as an offset after lost frames
_BAD_HEADER = "the header of a frame is damaged"


@dataclass(frozen=True)
class Recovered:
    """Verified content of a frame."""

    offset: int  # in the content
    content: bytes


@dataclass(frozen=True)
class Damage:
    """Bytes of content from `start` to `end` (exclusive) are lost.

    `end` is None if it is unknown. It equals `start` if no content is lost: only the archive's end
    is damaged.
    """

    start: int
    end: int | None
    frames: tuple[int, int]  # first and last, from 0; an estimate after damaged frame headers
    reason: str


def recover(source: BinaryIO, options: Options, progress: Progress) -> Iterator[Recovered | Damage]:
    """What concatenated archives still hold, in the order of their content; no Damage if they are
    intact.

    `source` is seekable and at its start. If the length of a damaged archive is unknown, the next
    one's offsets continue from its last known byte. Raises LlmzipError if the first header is
    damaged, a model is not available, or the content is longer than `options` allow.
    """
    reader = FrameReader(options, progress)
    offset = frames = came = 0  # content, frames and recovered content of the archives so far
    for start, end in find_archives(source):
        length = count = 0
        try:
            view = cast(BinaryIO, _View(source, start, end))
            for found in _ArchiveRecovery(view, reader, came).results():
                if isinstance(found, Recovered):
                    came += len(found.content)
                    length = found.offset + len(found.content)
                    yield Recovered(offset + found.offset, found.content)
                    count += 1
                    continue
                length = max(length, found.start if found.end is None else found.end)
                first, last = found.frames
                count = max(count, last + 1)
                yield Damage(
                    offset + found.start,
                    None if found.end is None else offset + found.end,
                    (frames + first, frames + last),
                    found.reason,
                )
        except (CorruptArchive, UnsupportedArchive) as error:  # in the archive's header
            if not start:
                raise
            yield Damage(offset, None, (frames, frames), str(error))
        offset, frames = offset + length, frames + count


class _View(io.RawIOBase):
    """A range of a seekable source as a source of its own."""

    def __init__(self, source: BinaryIO, start: int, end: int) -> None:
        self._source, self._start, self._size, self._at = source, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._source.seek(self._start + self._at)
        data = self._source.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


class _ArchiveRecovery:
    """Recovers one archive; offsets are within its content."""

    def __init__(self, source: BinaryIO, reader: FrameReader, came: int) -> None:
        self._search, self._reader = FrameSearch(source), reader
        self._came = came  # bytes recovered so far, which max_length limits
        self._hash = hashlib.blake2b(digest_size=HASH_BYTES)
        self._lengths: Counter[int] = Counter()  # of the content of intact frames
        self._offset = self._number = 0  # of the next frame
        self._lost = 0  # frames, or ranges without one, since the last intact frame
        self._reason = ""  # why the first of them is lost
        # the next offset, if the lengths in the headers of lost frames are right
        self._claimed: int | None = 0
        # where to search if the frame after a doubtful one turns out to be none
        self._fallback: int | None = None

    def results(self) -> Iterator[Recovered | Damage]:
        search, incomplete = self._search, False
        position: int | None = search.start
        while position is not None and position < search.size:
            frame = search.frame_at(position)
            if frame is not None and frame.header.frame.kind == MODEL:
                self._reader.prepare(search.header)  # an error here is not damage
            try:
                offset, content = self._decode(frame, position)
            except (CorruptArchive, UnsupportedArchive) as error:
                position = self._after_lost(frame, position, str(error))
                continue
            assert frame is not None
            self._lengths[len(content)] += 1
            if self._lost:
                if self._reason == TOO_EARLY:  # it did not, after all
                    self._reason = _BAD_HEADER
                damage = self._damage(offset)
                yield damage
                self._number, self._lost, incomplete = damage.frames[1] + 1, 0, True
            yield Recovered(offset, content)
            self._hash.update(content)
            self._came += len(content)
            self._offset = self._claimed = offset + len(content)
            self._number += 1
            if frame.header.frame.last:
                digest = None if incomplete else self._hash.digest()
                reason = search.trailer_error(frame, self._offset, self._number, digest)
                if reason:
                    yield Damage(self._offset, self._offset, (self._number, self._number), reason)
                return
            position, self._fallback = frame.end, None
        if not self._lost:
            self._reason = TOO_EARLY
        yield self._damage(search.total_length(self._offset, self._lost))

    def _decode(self, frame: FrameLocation | None, position: int) -> tuple[int, bytes]:
        """Offset and content of a frame. Raises CorruptArchive, UnsupportedArchive."""
        search = self._search
        if frame is None:
            complete = position + LONGEST_FRAME_HEADER <= search.size
            raise CorruptArchive(_BAD_HEADER if complete else TOO_EARLY)
        candidates: list[int | None] = [self._offset]
        if self._lost:
            usual = self._usual() or frame.header.frame.content_length
            candidates = [self._claimed, search.offset_from_end(position)]
            candidates += [self._offset + k * usual for k in range(1, _MULTIPLES + 1)]
        complete_frame = replace(frame.header.frame, payload=search.payload(frame))
        content = self._reader.content(complete_frame, search.header, self._came)
        offsets = (offset for offset in candidates if offset is not None)
        least = self._offset + bool(self._lost)
        return search.offset_of(frame, content, offsets, least), content

    def _after_lost(self, frame: FrameLocation | None, position: int, reason: str) -> int | None:
        """Where to go on after a lost frame; None if nothing follows."""
        search = self._search
        if not self._lost:
            self._reason = reason
        self._lost += 1
        if frame is not None:
            if self._claimed is not None:
                self._claimed += frame.header.frame.content_length
            ends = frame.header.frame.last and search.is_end(frame.end)
            if ends or search.starts_chain(frame.end) or search.payload_matches(frame):
                self._fallback = None
                return None if ends else frame.end
            if self._fallback is None and frame.end < search.size:
                self._fallback = position + 1
                return frame.end
        start, self._fallback, self._claimed = self._fallback or position + 1, None, None
        return search.next_frame(start, self._usual())

    def _usual(self) -> int:
        """The most common content length of intact frames: all but the last have the same, as a
        rule; 0 if none is known."""
        return self._lengths.most_common(1)[0][0] if self._lengths else 0

    def _damage(self, end: int | None) -> Damage:
        count = -(-(end - self._offset) // (self._usual() or end)) if end else 1
        return Damage(self._offset, end, (self._number, self._number + count - 1), self._reason)
