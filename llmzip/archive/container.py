"""Archives ↔ bytes: frames and trailers, as docs/format.md lays down; names are of the document.

Every length is checked before anything is allocated. Knows nothing of what a frame means.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

from llmzip.archive.header import (
    MAGIC,
    SHORT_MAGIC,
    Header,
    ModelHeader,
    read_header,
    read_magic,
)
from llmzip.coding.frame import FRAME_LIMIT, MODEL, RAW, SMALL, Frame
from llmzip.errors import CorruptArchive, PaddingWarning, TruncatedArchive, UnsupportedArchive

SUFFIX = ".llmz"

HASH_BYTES = 16
TRAILER_BYTES = 8 + HASH_BYTES
CHECK_BYTES = 4
MODEL_FIELDS = 12  # bytes that a model frame needs beyond those of a stored one, about

_KIND_MASK, _LAST_FRAME = 3, 0x80
_CHUNK = 1 << 16


def varint(value: int) -> bytes:
    """Little-endian base 128, the high bit set on all bytes but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


Take = Callable[[int], bytes]  # gives the next so many bytes, or raises TruncatedArchive


class _Fields:
    """Reads the fields of a frame, and keeps their bytes."""

    def __init__(self, take: Take) -> None:
        self._take, self.data = take, bytearray()

    def byte(self) -> int:
        self.data += self._take(1)
        return self.data[-1]

    def number(self, limit: int, what: str) -> int:
        """A varint."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    break  # a padded number: there is one spelling of each
                if value > limit:
                    raise CorruptArchive(f"{what} of {value}, where at most {limit} is possible")
                return value
        raise CorruptArchive(f"{what} is not a well-formed number")


def read_fields(take: Take, has_model: bool) -> tuple[Frame, int, bytes]:
    """A frame without its payload, Payload_Length, and the fields as they are in the archive.

    Raises CorruptArchive, UnsupportedArchive.
    """
    fields = _Fields(take)
    first = fields.byte()
    kind, last = first & _KIND_MASK, bool(first & _LAST_FRAME)
    if first & ~(_KIND_MASK | _LAST_FRAME):
        raise UnsupportedArchive(f"unknown kind of frame ({first:#04x})")
    if kind == MODEL and not has_model:
        raise CorruptArchive("a frame needs a model, but the header names none")
    content_length = payload_length = fields.number(FRAME_LIMIT, "content length")
    tokens = streams = 0
    if kind == MODEL:
        tokens = fields.number(content_length, "number of tokens")
        streams = fields.number(tokens, "number of streams")
        if not streams:
            raise CorruptArchive("a frame without streams")
    if kind != RAW:
        payload_length = fields.number(content_length, "payload length")
    frame = Frame(kind, content_length, b"", tokens, streams, last)
    return frame, payload_length, bytes(fields.data)


def read_short_fields(take: Take) -> tuple[Frame, int, bytes]:
    """The same of the only frame of a short archive."""
    fields = _Fields(take)
    content_length = fields.number(SMALL, "content length")
    payload_length = fields.number(content_length, "payload length")
    frame = Frame(MODEL, content_length, b"", streams=1, last=True)
    return frame, payload_length, bytes(fields.data)


class Writer:
    """Writes one archive to `sink`; frames in order, the last one marked, then `finish`."""

    def __init__(self, sink: BinaryIO, header: Header) -> None:
        self._sink, self._header = sink, header
        self._hash = hashlib.blake2b(digest_size=HASH_BYTES)
        self._offset = self._frames = 0
        sink.write(header.data)

    def write(self, frame: Frame, content: bytes) -> None:
        """Append a frame; `content` is what it decodes to."""
        assert len(content) == frame.content_length <= FRAME_LIMIT
        if self._header.short:
            assert (frame.kind, frame.streams, frame.tokens, frame.last) == (MODEL, 1, 0, True)
            fields = varint(frame.content_length) + varint(len(frame.payload))
        else:
            fields = bytes([frame.kind | (_LAST_FRAME if frame.last else 0)])
            fields += varint(frame.content_length)
            if frame.kind == MODEL:
                fields += varint(frame.tokens) + varint(frame.streams)
            if frame.kind != RAW:
                fields += varint(len(frame.payload))
        self._sink.write(fields + frame.payload)
        if frame.content_length > SMALL:
            self._sink.write(check(frame.payload))
        self._sink.write(content_check(self._header.data, self._offset, fields, content))
        self._hash.update(content)
        self._offset += len(content)
        self._frames += 1
        if frame.last and has_trailer(self._offset, self._frames):
            self._sink.write(offset_bytes(self._offset) + self._hash.digest())


@dataclass(frozen=True)
class Part:
    """One of several archives that follow each other in a source."""

    number: int
    header: Header
    offset: int  # where its content begins in that of all of them
    frame: int  # the number of its first frame among all of them


@dataclass(frozen=True)
class Place:
    """Where a frame is: its number and its first byte in the source, and in the content."""

    part: Part
    frame: int
    position: int
    offset: int


class Reader:
    """Reads archives that follow each other in `source`, as one whole, to its end.

    For every frame call `next_frame`, decode its payload by the model of `part.header`, then
    `accept` with the content, which raises CorruptArchive if it is not what was written.
    `next_frame` returns None at the end. `source` need not be seekable unless `hop`, `place` or
    `go` is called.
    """

    def __init__(self, source: BinaryIO, *, alone: bool = False) -> None:
        """Reads the first header; if `alone`, nothing beyond the first archive's end is read.

        Raises CorruptArchive or UnsupportedArchive.
        """
        self._source, self._alone = source, alone
        self.offset = 0  # bytes of content accepted or passed over
        self._frames = 0  # likewise frames
        self._fields = b""
        self._expected = b""  # Content_Check of the frame that was read last
        self._at_end = False
        header = read_header(read_magic(source.read), self._take)
        self._begin(Part(0, header, 0, 0))

    def _begin(self, part: Part) -> None:
        self.part = part
        self._hash = hashlib.blake2b(digest_size=HASH_BYTES)
        self._done = self._ended = self._skipped = False

    @property
    def fields_length(self) -> int:
        """Bytes of the fields of the frame that was read last."""
        return len(self._fields)

    @property
    def model(self) -> ModelHeader | None:
        """What the frame that was read last, or the first one, asks for."""
        return self.part.header.model

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._source.read(count)
            if not part:
                raise TruncatedArchive("the archive ends too early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def next_frame(self) -> Frame | None:
        """The next frame, its Payload_Check verified; None after the last of all archives."""
        fields = self._next_fields()
        if fields is None:
            return None
        frame, payload_length = fields
        payload = self._take(payload_length)
        if frame.content_length > SMALL and self._take(CHECK_BYTES) != check(payload):
            raise CorruptArchive(f"frame {self._frames} is damaged (its payload check fails)")
        self._expected = self._take(CHECK_BYTES)
        return replace(frame, payload=payload)

    def _next_fields(self) -> tuple[Frame, int] | None:
        """The next frame without its payload, and the length of that; None after the last."""
        if not self._turn_to_frame():
            return None
        if self.part.header.short:
            frame, payload_length, self._fields = read_short_fields(self._take)
        else:
            frame, payload_length, self._fields = read_fields(self._take, self.model is not None)
        return frame, payload_length

    def _turn_to_frame(self) -> bool:
        """Be where a frame begins, of the next archive if one has ended; False at the end."""
        if not self._done:
            return True
        self._read_end()
        if self._alone or self._at_end:
            return False
        magic = read_following(self._source)
        if not magic:
            self._at_end = True
            return False
        header = read_header(magic, self._take)
        self._begin(Part(self.part.number + 1, header, self.offset, self._frames))
        return True

    def accept(self, frame: Frame, content: bytes) -> None:
        """Verify a decoded frame; nothing of it may be used before."""
        offset = self.offset - self.part.offset
        actual = content_check(self.part.header.data, offset, self._fields, content)
        if len(content) != frame.content_length or self._expected != actual:
            raise CorruptArchive(f"frame {self._frames} is damaged (its content check fails)")
        self._hash.update(content)
        self._pass(frame.content_length, frame.last)

    def skip(self, frame: Frame) -> None:
        """Pass over a frame undecoded; only the structure is verified from here on."""
        self._skipped = True
        self._pass(frame.content_length, frame.last)

    def _pass(self, content_length: int, last: bool) -> None:
        self.offset += content_length
        self._frames += 1
        self._done = last

    def place(self) -> Place | None:
        """Of the next frame; None at the end."""
        if not self._turn_to_frame():
            return None
        return Place(self.part, self._frames, self._source.tell(), self.offset)

    def hop(self) -> bool:
        """As `next_frame` and `skip`, by its lengths alone; False after the last frame."""
        fields = self._next_fields()
        if fields is None:
            return False
        frame, payload_length = fields
        checks = CHECK_BYTES * (1 + (frame.content_length > SMALL))
        self._source.seek(payload_length + checks - 1, io.SEEK_CUR)
        self._take(1)  # a file can be sought beyond its end
        self.skip(frame)
        return True

    def go(self, place: Place) -> None:
        """The next frame is the one at `place`, which this reader gave."""
        self._source.seek(place.position)
        self._begin(place.part)
        self._frames, self.offset = place.frame, place.offset
        self._at_end = False
        # at the first frame of an archive, the hash of its whole can be verified again
        self._skipped = place.frame > place.part.frame

    def _read_end(self) -> None:
        if self._ended:
            return
        length = self.offset - self.part.offset
        if has_trailer(length, self._frames - self.part.frame):
            trailer = self._take(TRAILER_BYTES)
            if trailer[:8] != offset_bytes(length):
                raise CorruptArchive("the trailer does not fit the frames")
            if trailer[8:] != self._hash.digest() and not self._skipped:
                raise CorruptArchive("the hash of the whole content fails")
        self._ended = True


def read_following(source: BinaryIO) -> bytes:
    """What follows an archive's end: the Magic of the next archive, b"" at the end of the source.

    Zero bytes up to the end, as tapes and `dd` leave them, are passed over with a
    PaddingWarning. Raises CorruptArchive for anything else.
    """
    start = read_magic(source.read)
    if not start or any(known.startswith(start) for known in (MAGIC, SHORT_MAGIC)):
        return start
    zeros = 0
    while start:
        if start.strip(b"\0"):
            raise CorruptArchive("bytes follow the end of the archive that are no archive")
        zeros += len(start)
        start = source.read(_CHUNK)
    warnings.warn(
        f"{zeros} zero bytes after the end of the archive are passed over",
        PaddingWarning,
        stacklevel=2,
    )
    return b""


def has_trailer(content_length: int, frames: int) -> bool:
    """A single small frame is verified as a whole by its own check."""
    return content_length > SMALL or frames > 1


def content_check(header: bytes, offset: int, fields: bytes, content: bytes) -> bytes:
    """Content_Check of a frame whose content begins at `offset` of the whole."""
    return check(header, offset_bytes(offset), fields, content)


def check(*parts: bytes) -> bytes:
    """BLAKE2b-4 of all parts together."""
    hasher = hashlib.blake2b(digest_size=CHECK_BYTES)
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def offset_bytes(offset: int) -> bytes:
    """As in the trailer."""
    return offset.to_bytes(8, "little")
