"""A damaged archive → where its frames begin: by their lengths, or by search where these are wrong.

Decodes nothing. docs/format.md, section 9, describes the method.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from llmzip.archive import container
from llmzip.archive.frame_header import (
    CHECKSUM_BYTES,
    LONGEST_FRAME_HEADER,
    FrameHeader,
    read_frame_header,
)
from llmzip.archive.header import read_exactly, read_up_to
from llmzip.coding.frame import FRAME_LIMIT
from llmzip.errors import CorruptArchive, LlmzipError

TOO_EARLY = "the archive ends too early"

_CHAIN = 4  # frames whose lengths lead to the next: more than chance gives
_HASHED_PASSES = 16  # a search hashes at most this many times the archive's length
_CHUNK = 1 << 20

# matches wherever the fields of a frame may begin
_NUMBER = rb"(?:[\x00-\x7f]|[\x80-\xff]{1,4}[\x01-\x7f])"
_FIELDS = re.compile(
    rb"(?=[\x00\x80]%b|[\x01\x03\x81\x83]%b{2}|[\x02\x82]%b{4})" % ((_NUMBER,) * 3), re.DOTALL
)


@dataclass(frozen=True)
class FrameLocation:
    """A frame as its header describes it; its end may lie beyond that of the archive."""

    header: FrameHeader
    payload_start: int

    @property
    def payload_end(self) -> int:
        """Position after the payload."""
        return self.payload_start + self.header.payload_length

    @property
    def end(self) -> int:
        """Position after the checksums."""
        return self.payload_end + self.header.checksum_bytes


class FrameSearch:
    """Finds the frames of the archive in `source`, a seekable file with nothing after its end."""

    def __init__(self, source: BinaryIO) -> None:
        """Reads the archive's header. Raises CorruptArchive, UnsupportedArchive."""
        self.header = container.Reader(source, single=True).archive.header
        self._source, self.size = source, source.seek(0, io.SEEK_END)
        self.start = len(self.header.data)  # of the first frame
        self._hashed = 0  # bytes
        self._lengths_to_end: dict[int, int | None] = {}  # position → bytes of content from there

    def _read(self, position: int, size: int) -> bytes:
        self._source.seek(position)
        return read_up_to(self._source, size)

    def frame_at(self, position: int) -> FrameLocation | None:
        """The frame whose header is at a position, if there is a well-formed one."""
        stream = io.BytesIO(self._read(position, LONGEST_FRAME_HEADER))
        try:
            header = read_frame_header(functools.partial(read_exactly, stream), self.header)
        except LlmzipError:
            return None
        return FrameLocation(header, position + len(header.fields))

    def is_end(self, position: int) -> bool:
        """Whether the last frame of the archive may end here."""
        return self.size - position in (0, container.TRAILER_BYTES)

    def starts_chain(self, position: int) -> bool:
        """Whether frames follow from a position: several, or up to the archive's end."""
        for _ in range(_CHAIN):
            frame = self.frame_at(position)
            if frame is None or frame.end > self.size:
                return False
            position = frame.end
            if frame.header.frame.last:
                return self.is_end(position)
        return True

    def payload_matches(self, frame: FrameLocation) -> bool:
        """Whether there is a Payload_Checksum that matches; then the header is intact."""
        if not frame.header.has_payload_checksum or frame.end > self.size:
            return False
        self._hashed += frame.header.payload_length
        payload = self._read(frame.payload_start, frame.header.payload_length)
        return container.checksum(payload) == self._read(frame.payload_end, CHECKSUM_BYTES)

    def next_frame(self, start: int, usual: int) -> int | None:
        """Position of the first likely frame from `start` on; `usual` is the content length of
        most frames, 0 if unknown."""
        # a short archive has one frame; frames of nested archives could be taken for this one's
        if self.header.short or self._has_nested_archives:
            return None
        for position in self._candidates(start):
            frame = self.frame_at(position)
            if frame is None or frame.end > self.size:
                continue
            likely = frame.header.frame.content_length == usual
            if frame.header.has_payload_checksum:
                if self._hashed > _HASHED_PASSES * self.size:
                    return None  # an archive made to keep us busy
                likely = likely or self.frame_at(frame.end) is not None or self.is_end(frame.end)
                likely = likely and self.payload_matches(frame)
            elif not likely:
                likely = self.starts_chain(position)
            if likely:
                return position
        return None

    def _candidates(self, start: int) -> Iterator[int]:
        while start < self.size:
            chunk = self._read(start, _CHUNK + LONGEST_FRAME_HEADER)
            for match in _FIELDS.finditer(chunk):
                if match.start() < _CHUNK:
                    yield start + match.start()
            start += _CHUNK

    @functools.cached_property
    def _has_nested_archives(self) -> bool:
        """Whether the header occurs a second time."""
        return any(
            self.header.data in self._read(start, _CHUNK + len(self.header.data))
            for start in range(1, self.size, _CHUNK)
        )

    def payload(self, frame: FrameLocation) -> bytes:
        """Raises CorruptArchive if it is incomplete or its checksum does not match."""
        if frame.end > self.size:
            raise CorruptArchive(TOO_EARLY)
        if frame.header.has_payload_checksum and not self.payload_matches(frame):
            raise CorruptArchive("its payload checksum does not match")
        return self._read(frame.payload_start, frame.header.payload_length)

    def offset_of(
        self, frame: FrameLocation, content: bytes, candidates: Iterable[int], least: int
    ) -> int:
        """The first candidate, at least `least`, for the content's offset for which
        Content_Checksum matches. Raises CorruptArchive if there is none."""
        expected = self._read(frame.end - CHECKSUM_BYTES, CHECKSUM_BYTES)
        if len(content) == frame.header.frame.content_length:
            data, fields = self.header.data, frame.header.fields
            for offset in dict.fromkeys(candidates):
                if least <= offset < 1 << 64 and expected == container.content_checksum(
                    data, offset, fields, content
                ):
                    return offset
        raise CorruptArchive("its content checksum does not match")

    def offset_from_end(self, position: int) -> int | None:
        """The offset of the content of the frame at a position, if lengths lead from it to the
        trailer."""
        known = self._lengths_to_end
        passed: list[tuple[int, int]] = []
        at = position
        while at not in known:
            frame = self.frame_at(at)
            if frame is None or frame.end > self.size:
                known[at] = None
                break
            passed.append((at, frame.header.frame.content_length))
            at = frame.end
            if frame.header.frame.last:
                known[at] = 0 if self.is_end(at) else None
        to_end = known[at]
        for start, length in reversed(passed):
            known[start] = to_end = None if to_end is None else to_end + length
        return None if to_end is None else self._total_length() - to_end

    def _total_length(self) -> int:
        """Total_Length, if the archive ends with an intact trailer."""
        trailer = self._read(max(0, self.size - container.TRAILER_BYTES), 8)
        return int.from_bytes(trailer, "little")

    def total_length(self, offset: int, lost_frames: int) -> int | None:
        """Total_Length, if that many lost frames can hold the content from `offset` on."""
        total = self._total_length()
        return total if 0 < total - offset <= lost_frames * FRAME_LIMIT else None

    def trailer_error(
        self, last: FrameLocation, length: int, frames: int, digest: bytes | None
    ) -> str | None:
        """What is wrong after the last frame; `digest` is None if content is missing."""
        rest = self._read(last.end, container.TRAILER_BYTES + 1)
        if not container.has_trailer(length, frames):
            return "bytes follow the end of the archive" if rest else None
        trailer = container.offset_bytes(length) + (digest or rest[8 : container.TRAILER_BYTES])
        if rest == trailer:
            return None
        if rest.startswith(trailer):
            return "bytes follow the end of the archive"
        return "the trailer is damaged" + (", all frames are intact" if digest else "")
