"""Header, frames and trailer ↔ the bytes of an archive, as in docs/format.md.

Handles structure and checksums only: it does not know how a payload is decoded.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import deque
from dataclasses import dataclass, replace
from typing import BinaryIO

from llmzip.archive.frame_header import (
    CHECKSUM_BYTES,
    FrameHeader,
    read_frame_header,
    write_frame_header,
)
from llmzip.archive.header import (
    MAGICS,
    Header,
    ModelHeader,
    read_exactly,
    read_header,
    read_magic,
)
from llmzip.coding.frame import FRAME_LIMIT, SMALL, Frame
from llmzip.errors import CorruptArchive, LlmzipError, PaddingWarning

SUFFIX = ".llmz"

HASH_BYTES = 16
TRAILER_BYTES = 8 + HASH_BYTES

_CHUNK = 1 << 16


class Writer:
    """Writes one archive to `sink`: its frames in order, the last one marked as such."""

    def __init__(self, sink: BinaryIO, header: Header) -> None:
        self._sink, self._header = sink, header
        self._hash = hashlib.blake2b(digest_size=HASH_BYTES)
        self._offset = self._frames = 0
        sink.write(header.data)

    def write(self, frame: Frame, content: bytes) -> None:
        """Append a frame that decodes to `content`; after the last frame also the trailer."""
        assert len(frame.payload) <= len(content) == frame.content_length <= FRAME_LIMIT
        fields = write_frame_header(frame, self._header)
        self._sink.write(fields + frame.payload)
        if frame.content_length > SMALL:
            self._sink.write(checksum(frame.payload))
        self._sink.write(content_checksum(self._header.data, self._offset, fields, content))
        self._hash.update(content)
        self._offset += len(content)
        self._frames += 1
        if frame.last and has_trailer(self._offset, self._frames):
            self._sink.write(offset_bytes(self._offset) + self._hash.digest())


@dataclass(frozen=True)
class ArchiveStart:
    """Where one of several concatenated archives begins."""

    number: int  # of the archive, from 0
    header: Header
    offset: int  # of its content in the whole content
    frame: int  # number of its first frame among all frames


@dataclass(frozen=True)
class FramePosition:
    """Where a frame is."""

    archive: ArchiveStart
    frame: int  # its number among all frames
    position: int  # of its first byte in the source
    offset: int  # of its content in the whole content


class Reader:
    """Reads concatenated archives from `source`, up to its end.

    Call `next_frame`, decode the payload with the model of `archive.header`, then call `verify`
    with the content. The source must be seekable only for `skip_frame`, `position` and `seek`.
    """

    def __init__(self, source: BinaryIO, *, single: bool = False) -> None:
        """Reads the first header. If `single`, reads nothing beyond the end of the first archive.

        Raises CorruptArchive or UnsupportedArchive.
        """
        self._source, self._single = source, single
        self.offset = 0  # bytes of content verified or skipped
        self._frames = 0  # likewise frames
        self.fields = b""  # of the frame that was read last
        # Content_Checksum and fields of each frame that was read and not verified yet
        self._ahead: deque[tuple[bytes, bytes]] = deque()
        self._failure: LlmzipError | None = None  # of a frame that was read ahead
        self._at_end = False
        self._begin(ArchiveStart(0, read_header(read_magic(source), self._take), 0, 0))

    def _begin(self, archive: ArchiveStart) -> None:
        self.archive = archive
        self._hash = hashlib.blake2b(digest_size=HASH_BYTES)
        self._last_frame_done = self._trailer_read = self._skipped = False

    @property
    def model(self) -> ModelHeader | None:
        """The model that the current archive needs."""
        return self.archive.header.model

    def _take(self, count: int) -> bytes:
        return read_exactly(self._source, count)

    def next_frame(self) -> Frame | None:
        """The next frame, its Payload_Checksum verified; None after the last of all archives.

        Raises CorruptArchive, UnsupportedArchive.
        """
        self._ahead.clear()
        return self._read_frame()

    def _read_frame(self) -> Frame | None:
        header = self._next_header()
        if header is None:
            return None
        payload = self._take(header.payload_length)
        if header.has_payload_checksum and self._take(CHECKSUM_BYTES) != checksum(payload):
            raise CorruptArchive(
                f"frame {self._frames + len(self._ahead)} is damaged: its payload checksum does "
                "not match"
            )
        self._ahead.append((self._take(CHECKSUM_BYTES), header.fields))
        return replace(header.frame, payload=payload)

    def next_frames(self, most: int) -> list[Frame]:
        """The next frame and those that follow it in its archive, `most` in all, and no more after
        FRAME_LIMIT bytes of content; each has to be verified in this order; none after the last.
        Raises as `next_frame`: for a later frame only when it is the next one."""
        frames: list[Frame] = []
        while len(frames) < most and not (frames and frames[-1].last):
            if sum(frame.content_length for frame in frames) >= FRAME_LIMIT:
                break
            try:
                if self._failure is not None:
                    raise self._failure
                frame = self._read_frame()
            except LlmzipError as error:
                if not frames:
                    raise
                self._failure = error
                break
            if frame is None:
                break
            frames.append(frame)
        return frames

    def _next_header(self) -> FrameHeader | None:
        if not self._find_frame():
            return None
        header = read_frame_header(self._take, self.archive.header)
        self.fields = header.fields
        return header

    def _find_frame(self) -> bool:
        """Go to the start of the next frame, past the end of an archive; False at the end."""
        if not self._last_frame_done:
            return True
        self._read_trailer()
        if self._single or self._at_end:
            return False
        magic = read_next_magic(self._source)
        if not magic:
            self._at_end = True
            return False
        header = read_header(magic, self._take)
        self._begin(ArchiveStart(self.archive.number + 1, header, self.offset, self._frames))
        return True

    def verify(self, frame: Frame, content: bytes) -> None:
        """Check decoded content; use nothing of it before. Raises CorruptArchive."""
        offset = self.offset - self.archive.offset
        expected, fields = self._ahead.popleft()
        actual = content_checksum(self.archive.header.data, offset, fields, content)
        if len(content) != frame.content_length or expected != actual:
            raise CorruptArchive(
                f"frame {self._frames} is damaged: its content checksum does not match"
            )
        self._hash.update(content)
        self._advance(frame)

    def skip(self, frame: Frame) -> None:
        """Leave a frame undecoded; from here on only the structure is verified."""
        self._skipped = True
        if self._ahead:
            self._ahead.popleft()
        self._advance(frame)

    def _advance(self, frame: Frame) -> None:
        self.offset += frame.content_length
        self._frames += 1
        self._last_frame_done = frame.last

    def position(self) -> FramePosition | None:
        """Position of the next frame; None at the end."""
        if not self._find_frame():
            return None
        return FramePosition(self.archive, self._frames, self._source.tell(), self.offset)

    def skip_frame(self) -> bool:
        """Skip the next frame without reading its payload; False after the last frame."""
        header = self._next_header()
        if header is None:
            return False
        self._source.seek(header.payload_length + header.checksum_bytes - 1, io.SEEK_CUR)
        self._take(1)  # because a file can be sought beyond its end
        self.skip(header.frame)
        return True

    def seek(self, position: FramePosition) -> None:
        """Make the frame at a position of this reader the next one."""
        self._source.seek(position.position)
        self._begin(position.archive)
        self._frames, self.offset = position.frame, position.offset
        self._at_end = False
        self._ahead.clear()
        self._failure = None
        # from the first frame of an archive on, its Content_Hash can be verified again
        self._skipped = position.frame > position.archive.frame

    def _read_trailer(self) -> None:
        if self._trailer_read:
            return
        length = self.offset - self.archive.offset
        if has_trailer(length, self._frames - self.archive.frame):
            trailer = self._take(TRAILER_BYTES)
            if trailer[:8] != offset_bytes(length):
                raise CorruptArchive("the trailer's length does not match the frames")
            if trailer[8:] != self._hash.digest() and not self._skipped:
                raise CorruptArchive("the hash of the whole content does not match")
        self._trailer_read = True


def read_next_magic(source: BinaryIO) -> bytes:
    """The magic number of a further archive; b"" at the end of the source.

    Skips zero bytes up to the end, as tapes and `dd` leave them, with a PaddingWarning. Raises
    CorruptArchive for anything else.
    """
    start = read_magic(source)
    if not start or any(magic.startswith(start) for magic in MAGICS):
        return start
    zeros = 0
    while start:
        if start.strip(b"\0"):
            raise CorruptArchive("unknown bytes follow the end of the archive")
        zeros += len(start)
        start = source.read(_CHUNK)
    warnings.warn(
        f"{zeros} zero bytes after the end of the archive are ignored",
        PaddingWarning,
        stacklevel=2,
    )
    return b""


def has_trailer(content_length: int, frames: int) -> bool:
    """Whether an archive has a trailer: the checksum of a single small frame covers all of it."""
    return content_length > SMALL or frames > 1


def content_checksum(header: bytes, offset: int, fields: bytes, content: bytes) -> bytes:
    """Content_Checksum of a frame; `offset` is that of its content in its archive."""
    return checksum(header, offset_bytes(offset), fields, content)


def checksum(*parts: bytes) -> bytes:
    """BLAKE2b-4 of the concatenated parts."""
    hasher = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def offset_bytes(offset: int) -> bytes:
    """Eight bytes, little-endian."""
    return offset.to_bytes(8, "little")
