"""Header, frames, trailer ↔ bytes, as docs/format.md lays down; names are those of the document.

Every length is checked before anything is allocated. Knows nothing of what a frame means.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

from llmzip.errors import CorruptArchive, TruncatedArchive, UnsupportedArchive

MAGIC = b"LLMZ"
VERSION = 1
SUFFIX = ".llmz"

RAW, ZSTD, MODEL, LZMA = 0, 1, 2, 3  # Frame_Kind

FRAME_LIMIT = 1 << 26  # bytes of content a frame, binding writers and readers
SMALL = 1 << 16  # content up to this needs no Payload_Check, and alone no trailer
DIGEST_START = 6  # bytes of the model's digest in the header
HASH_BYTES = 16
TRAILER_BYTES = 8 + HASH_BYTES
MODEL_FIELDS = 12  # bytes that a model frame needs beyond those of a stored one, about

_HAS_MODEL, _HAS_NAME, _HAS_CERTIFICATE, _HAS_ENVIRONMENT = 1, 2, 4, 8
_FLAGS = _HAS_MODEL | _HAS_NAME | _HAS_CERTIFICATE | _HAS_ENVIRONMENT
CERTIFICATE_BYTES = 4
_ENVIRONMENT_LIMIT = 1 << 12
_KIND_MASK, _LAST_FRAME = 3, 0x80
CHECK_BYTES = 4


@dataclass(frozen=True)
class ModelHeader:
    """What decoding needs to know of the model."""

    profile: int  # the arithmetic, see docs/exactness.md
    digest_start: bytes
    window: int
    overlap: int
    name: str = ""
    certificate: bytes = b""  # of a converted model, how its code computes
    environment: str = ""  # of an archive that needs the very same one: a JSON object of strings


@dataclass(frozen=True)
class Frame:
    """A run of content that decodes on its own."""

    kind: int
    content_length: int
    payload: bytes
    tokens: int = 0  # of MODEL frames only
    streams: int = 0
    last: bool = False


LONGEST = 15 << 30  # what Window and Overlap can express


def round_length(length: int) -> int:
    """The largest length up to this one that Window and Overlap can express."""
    return 0 if length < 8 else _expand_length(_short_length(length))


def _short_length(length: int) -> int:
    """One byte: 0 for 0, else 5 bits of exponent and 3 of mantissa, (8 + m) · 2^(e - 1), e ≥ 1."""
    if length < 8:
        return 0
    exponent = length.bit_length() - 3
    return exponent << 3 | (length >> (exponent - 1)) & 7


def _expand_length(code: int) -> int:
    return (8 + (code & 7)) << ((code >> 3) - 1) if code >> 3 else 0


def varint(value: int) -> bytes:
    """Little-endian base 128, the high bit set on all bytes but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_fields(take: Callable[[int], bytes], has_model: bool) -> tuple[Frame, int, bytes]:
    """A frame without its payload, Payload_Length, and the fields as they are in the archive.

    `take` gives the next so many bytes. Raises CorruptArchive, UnsupportedArchive.
    """
    fields = bytearray(take(1))
    kind, last = fields[0] & _KIND_MASK, bool(fields[0] & _LAST_FRAME)

    def number(limit: int, what: str) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = take(1)[0]
            fields.append(byte)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    break  # a padded number: there is one spelling of each
                if value > limit:
                    raise CorruptArchive(f"{what} of {value}, where at most {limit} is possible")
                return value
        raise CorruptArchive(f"{what} is not a well-formed number")

    if fields[0] & ~(_KIND_MASK | _LAST_FRAME):
        raise UnsupportedArchive(f"unknown kind of frame ({fields[0]:#04x})")
    if kind == MODEL and not has_model:
        raise CorruptArchive("a frame needs a model, but the header names none")
    content_length = payload_length = number(FRAME_LIMIT, "content length")
    tokens = streams = 0
    if kind == MODEL:
        tokens = number(content_length, "number of tokens")
        streams = number(tokens, "number of streams")
        if not streams:
            raise CorruptArchive("a frame without streams")
    if kind != RAW:
        payload_length = number(content_length, "payload length")
    return Frame(kind, content_length, b"", tokens, streams, last), payload_length, bytes(fields)


class Writer:
    """Writes one archive to `sink`; frames in order, the last one marked, then `finish`."""

    def __init__(self, sink: BinaryIO, model: ModelHeader | None) -> None:
        self._sink = sink
        self._hash = hashlib.blake2b(digest_size=HASH_BYTES)
        self._offset = self._frames = 0
        flags, fields = 0, b""
        if model is not None:
            flags |= _HAS_MODEL
            assert round_length(model.window) == model.window
            assert round_length(model.overlap) == model.overlap
            fields = bytes([model.profile]) + model.digest_start
            fields += bytes([_short_length(model.window), _short_length(model.overlap)])
            if model.certificate:
                assert len(model.certificate) == CERTIFICATE_BYTES
                flags |= _HAS_CERTIFICATE
                fields += model.certificate
            if model.environment:
                environment = model.environment.encode()
                assert len(environment) <= _ENVIRONMENT_LIMIT
                flags |= _HAS_ENVIRONMENT
                fields += len(environment).to_bytes(2, "little") + environment
            if model.name:
                name = model.name.encode()[:255]
                flags |= _HAS_NAME
                fields += bytes([len(name)]) + name
        self.header = MAGIC + bytes([VERSION, flags]) + fields
        sink.write(self.header)

    def write(self, frame: Frame, content: bytes) -> None:
        """Append a frame; `content` is what it decodes to."""
        assert len(content) == frame.content_length <= FRAME_LIMIT
        fields = bytes([frame.kind | (_LAST_FRAME if frame.last else 0)])
        fields += varint(frame.content_length)
        if frame.kind == MODEL:
            fields += varint(frame.tokens) + varint(frame.streams)
        if frame.kind != RAW:
            fields += varint(len(frame.payload))
        self._sink.write(fields + frame.payload)
        if frame.content_length > SMALL:
            self._sink.write(check(frame.payload))
        self._sink.write(content_check(self.header, self._offset, fields, content))
        self._hash.update(content)
        self._offset += len(content)
        self._frames += 1
        if frame.last and has_trailer(self._offset, self._frames):
            self._sink.write(offset_bytes(self._offset) + self._hash.digest())


@dataclass(frozen=True)
class Place:
    """Where a frame is: its number, its first byte in the source, and in the content."""

    frame: int
    position: int
    offset: int


class Reader:
    """Reads one archive from `source`, which need not be seekable unless `hop` or `go` is called.

    For every frame call `next_frame`, decode its payload, then `accept` with the content, which
    raises CorruptArchive if it is not what was written. `next_frame` returns None at the end.
    """

    def __init__(self, source: BinaryIO, *, alone: bool = True) -> None:
        """Reads the header; if `alone`, bytes that follow the archive are refused.

        Raises CorruptArchive or UnsupportedArchive.
        """
        self._source, self._alone = source, alone
        self._hash = hashlib.blake2b(digest_size=HASH_BYTES)
        self.offset = 0  # bytes of content accepted
        self._frames = 0
        self._done = self._ended = self._skipped = False
        self.header = b""  # as it is in the archive
        self._fields = b""
        self._expected = b""  # Content_Check of the frame that was read last
        self.model: ModelHeader | None = None
        self._read_header()

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._source.read(count)
            if not part:
                raise TruncatedArchive("the archive ends too early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _read_header(self) -> None:
        start = self._source.read(len(MAGIC))
        while start and len(start) < len(MAGIC):
            more = self._source.read(len(MAGIC) - len(start))
            if not more:
                break
            start += more
        if start != MAGIC:
            if start and MAGIC.startswith(start):
                raise TruncatedArchive("the archive ends too early")
            raise CorruptArchive("not an llmzip archive (it does not begin with LLMZ)")
        version, flags = self._take(2)
        if version != VERSION:
            raise UnsupportedArchive(
                f"archive format version {version}; this llmzip reads version {VERSION}"
            )
        if flags & ~_FLAGS or (flags and not flags & _HAS_MODEL):
            raise UnsupportedArchive(f"the header has unknown flags ({flags:#04x})")
        self.header = MAGIC + bytes([version, flags])
        if flags & _HAS_MODEL:
            self.model = self._read_model(flags)

    def _read_model(self, flags: int) -> ModelHeader:
        def take(count: int) -> bytes:
            data = self._take(count)
            self.header += data
            return data

        def take_text(length_bytes: int, limit: int) -> str:
            length = int.from_bytes(take(length_bytes), "little")
            if length > limit:
                raise CorruptArchive(f"a text of {length} bytes in the header")
            return take(length).decode("utf-8", "replace")

        fields = take(1 + DIGEST_START + 2)
        window, overlap = (_expand_length(code) for code in fields[7:9])
        if not 0 <= overlap < window - 1:
            raise CorruptArchive(f"a window of {window} with an overlap of {overlap}")
        return ModelHeader(
            profile=fields[0],
            digest_start=fields[1:7],
            window=window,
            overlap=overlap,
            certificate=take(CERTIFICATE_BYTES) if flags & _HAS_CERTIFICATE else b"",
            environment=take_text(2, _ENVIRONMENT_LIMIT) if flags & _HAS_ENVIRONMENT else "",
            name=take_text(1, 255) if flags & _HAS_NAME else "",
        )

    def next_frame(self) -> Frame | None:
        """The next frame, its Payload_Check verified; None after the last."""
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
        if self._done:
            self._read_end()
            return None
        frame, payload_length, self._fields = read_fields(self._take, self.model is not None)
        return frame, payload_length

    def accept(self, frame: Frame, content: bytes) -> None:
        """Verify a decoded frame; nothing of it may be used before."""
        actual = content_check(self.header, self.offset, self._fields, content)
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

    def place(self) -> Place:
        """Of the next frame."""
        return Place(self._frames, self._source.tell(), self.offset)

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
        self._frames, self.offset = place.frame, place.offset
        self._done = self._ended = False
        self._skipped = place.frame > 0  # else the hash of the whole can be verified again
        self._hash = hashlib.blake2b(digest_size=HASH_BYTES)

    def _read_end(self) -> None:
        if self._ended:
            return
        if has_trailer(self.offset, self._frames):
            trailer = self._take(TRAILER_BYTES)
            if trailer[:8] != offset_bytes(self.offset):
                raise CorruptArchive("the trailer does not fit the frames")
            if trailer[8:] != self._hash.digest() and not self._skipped:
                raise CorruptArchive("the hash of the whole content fails")
        if self._alone and self._source.read(1):
            raise CorruptArchive("bytes follow the end of the archive")
        self._ended = True


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
