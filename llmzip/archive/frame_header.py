"""The fields before a frame's payload ↔ bytes, as in docs/format.md, sections 3 and 10.

Every length is checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmzip.archive.header import Header
from llmzip.coding.frame import FRAME_LIMIT, MODEL, RAW, SMALL, Frame
from llmzip.errors import CorruptArchive, UnsupportedArchive

CHECKSUM_BYTES = 4
LONGEST_FRAME_HEADER = 1 + 4 * 5  # bytes

_KIND_MASK, _LAST_FRAME = 3, 0x80


@dataclass(frozen=True)
class FrameHeader:
    """What the fields of a frame say."""

    frame: Frame  # without its payload
    payload_length: int  # bytes
    fields: bytes  # as they are in the archive

    @property
    def has_payload_checksum(self) -> bool:
        """Whether Payload_Checksum follows the payload."""
        return self.frame.content_length > SMALL

    @property
    def checksum_bytes(self) -> int:
        """Length of the checksums that follow the payload."""
        return CHECKSUM_BYTES * (1 + self.has_payload_checksum)


def varint(value: int) -> bytes:
    """Little-endian base 128: the high bit is set on all bytes but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_frame_header(frame: Frame, header: Header) -> bytes:
    """The fields of a frame in an archive that begins with `header`."""
    if header.short:
        assert (frame.kind, frame.streams, frame.tokens, frame.last) == (MODEL, 1, 0, True)
        return varint(frame.content_length) + varint(len(frame.payload))
    fields = bytes([frame.kind | (_LAST_FRAME if frame.last else 0)])
    fields += varint(frame.content_length)
    if frame.kind == MODEL:
        fields += varint(frame.tokens) + varint(frame.streams)
    if frame.kind != RAW:
        fields += varint(len(frame.payload))
    return fields


def read_frame_header(take: Callable[[int], bytes], header: Header) -> FrameHeader:
    """The next frame's fields; `take(n)` returns the next n bytes.

    Raises CorruptArchive, UnsupportedArchive, and what `take` raises.
    """
    fields = _Fields(take)
    frame, payload_length = _read_short(fields) if header.short else _read(fields, header)
    return FrameHeader(frame, payload_length, bytes(fields.data))


def _read_short(fields: _Fields) -> tuple[Frame, int]:
    content_length = fields.varint(SMALL, "content length")
    payload_length = fields.varint(content_length, "payload length")
    return Frame(MODEL, content_length, b"", streams=1, last=True), payload_length


def _read(fields: _Fields, header: Header) -> tuple[Frame, int]:
    first = fields.byte()
    kind, last = first & _KIND_MASK, bool(first & _LAST_FRAME)
    if first & ~(_KIND_MASK | _LAST_FRAME):
        raise UnsupportedArchive(f"unknown kind of frame ({first:#04x})")
    if kind == MODEL and header.model is None:
        raise CorruptArchive("a frame needs a model, but the header names none")
    content_length = payload_length = fields.varint(FRAME_LIMIT, "content length")
    tokens = streams = 0
    if kind == MODEL:
        tokens = fields.varint(content_length, "number of tokens")
        streams = fields.varint(tokens, "number of streams")
        if not streams:
            raise CorruptArchive("a frame without streams")
    if kind != RAW:
        payload_length = fields.varint(content_length, "payload length")
    return Frame(kind, content_length, b"", tokens, streams, last), payload_length


class _Fields:
    """Reads fields and keeps their bytes."""

    def __init__(self, take: Callable[[int], bytes]) -> None:
        self._take, self.data = take, bytearray()

    def byte(self) -> int:
        self.data += self._take(1)
        return self.data[-1]

    def varint(self, limit: int, name: str) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    break  # padded: every number has exactly one encoding
                if value > limit:
                    raise CorruptArchive(f"{name} of {value}; at most {limit} is possible")
                return value
        raise CorruptArchive(f"{name} is not a well-formed number")
