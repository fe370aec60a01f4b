"""What must hold for any bytes that are read as an archive; shared by the fuzzer and the tests.

Model frames are decoded with a predictor without weights, whatever model the header names, so
that thousands of inputs a second are tried.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from llmzip.archive import container, frame_reader
from llmzip.archive.reader import ArchiveReader
from llmzip.coding.frame import Frame
from llmzip.coding.frame_codec import FrameCodec
from llmzip.errors import CorruptArchive, LlmzipError
from llmzip.io.file import LlmzipFile
from llmzip.io.incremental import Decompressor

STEPS = 64  # of a model frame, at most: more of them are slow, and nothing else


class _Agrees(bytes):
    """A checksum that equals any other."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


class Short(FrameCodec):
    """Refuses frames of many steps."""

    def decode(self, frame: Frame, progress: Any) -> bytes:
        if frame.tokens > STEPS * frame.streams:
            raise CorruptArchive("too long for the fuzzer")
        return super().decode(frame, progress)


@contextlib.contextmanager
def any_model(frames: FrameCodec, *, checks: bool) -> Iterator[None]:
    """Within, `frames` decodes all model frames; without `checks`, no checksum of a frame is
    verified, so that what is damaged reaches the decoders."""
    for_reading, check = frame_reader.codec_for_reading, container.checksum
    frame_reader.codec_for_reading = lambda *_: frames
    if not checks:
        container.checksum = lambda *_: _Agrees()
    try:
        yield
    finally:
        frame_reader.codec_for_reading, container.checksum = for_reading, check


def whole(data: bytes) -> bytes | None:
    """The content, or None if the archive is refused; any other exception passes."""
    try:
        return b"".join(ArchiveReader(io.BytesIO(data)))
    except LlmzipError:
        return None


def in_pieces(data: bytes, size: int, limit: int) -> bytes | None:
    """The same by a Decompressor for each archive, `size` bytes at a time, `limit` bytes out at a
    time."""
    out = bytearray()
    while True:
        reader, at = Decompressor(), 0
        try:
            while not reader.eof:
                fed = b""
                if reader.needs_input:
                    if at >= len(data):
                        return None
                    fed, at = data[at : at + size], at + size
                part = reader.decompress(fed, limit)
                assert len(part) <= limit
                out += part
        except LlmzipError:
            return None
        data = reader.unused_data + data[at:]
        if not data.strip(b"\0"):  # padding is not ours to judge
            return bytes(out)


def by_seeking(data: bytes, content: bytes | None) -> None:
    """Whatever can be read at any place is what is there."""
    try:
        file = LlmzipFile(io.BytesIO(data))
    except LlmzipError:
        assert content is None
        return
    size = len(content) if content is not None else 100
    for offset in (size // 2, 0, size - 1, size // 3):
        try:
            file.seek(max(0, offset))
            part = file.read(7)
        except LlmzipError:
            assert content is None
            continue
        if content is not None:
            assert part == content[max(0, offset) :][:7]
    with contextlib.suppress(LlmzipError):
        assert file.seek(0, io.SEEK_END) == size or content is None


def by_seeking_damaged(data: bytes, content: bytes) -> None:
    """Whatever can be read of a damaged archive, at any place, is what was there."""
    try:
        file = LlmzipFile(io.BytesIO(data))
    except LlmzipError:
        return
    for offset in range(0, len(content), 40):
        with contextlib.suppress(LlmzipError):
            file.seek(offset)
            assert file.read(5) == content[offset:][:5]


def check(data: bytes) -> None:
    """All of them, for one input: the first byte chooses how the rest is read."""
    size, limit = 1 + data[0] % 37, 1 + data[0] % 11
    archive = data[1:]
    content = whole(archive)
    assert in_pieces(archive, size, limit) == content
    by_seeking(archive, content)
