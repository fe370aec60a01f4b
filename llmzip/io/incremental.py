"""`Compressor` and `Decompressor`: archives in pieces, as in lzma and compression.zstd.

Knows nothing of files and of models' insides.
"""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from llmzip.archive.options import Options, bytes_like
from llmzip.archive.reader import ArchiveReader
from llmzip.archive.writer import ArchiveWriter


class Compressor:
    """Content in pieces → an archive in pieces, to be joined in their order."""

    def __init__(self, options: Options | None = None) -> None:
        self._sink = io.BytesIO()
        self._writer = ArchiveWriter(self._sink, options)
        self._flushed = False

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take `data` in → the frames that are complete now, b"" for most calls: up to a frame
        (`Options.frame_size` bytes of content) is kept. Raises LlmzipError."""
        if self._flushed:
            raise ValueError("the compressor has been flushed")
        with bytes_like(data, "compress") as view:
            self._writer.write(view)
        return self._take()

    def flush(self) -> bytes:
        """The rest of the archive; the compressor cannot be used after it."""
        if self._flushed:
            raise ValueError("repeated call to flush()")
        self._flushed = True
        self._writer.finish()
        return self._take()

    def _take(self) -> bytes:
        taken = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return taken


class Decompressor:
    """One archive in pieces → its content in pieces, each of them verified. What follows its end,
    such as a further archive, is left in `unused_data`.

    It holds at most a frame's payload and its content, 64 MiB each, beside what the model needs.
    """

    def __init__(self, options: Options | None = None) -> None:
        self._options = options
        self._fed = _Fed()
        self._reader: ArchiveReader | None = None
        self._content = memoryview(b"")  # decoded, and not yet given away
        self._eof = False
        self._needs_input = True

    @property
    def eof(self) -> bool:
        """Whether the end of the archive has been reached and verified. Without it, what came
        out is intact, but only the beginning."""
        return self._eof

    @property
    def needs_input(self) -> bool:
        """False if `decompress(b"")` may give more."""
        return self._needs_input

    @property
    def unused_data(self) -> bytes:
        """What follows the end of the archive; b"" before `eof`."""
        return self._fed.rest() if self._eof else b""

    def decompress(self, data: bytes | bytearray | memoryview, max_length: int = -1) -> bytes:
        """Take `data` in → up to `max_length` bytes of content (no limit if negative).

        A frame comes out when all of it has come in. Raises EOFError after the end, LlmzipError
        if the archive is not intact.
        """
        if self._eof:
            raise EOFError("already at the end of the archive")
        with bytes_like(data, "decompress") as view:
            self._fed.feed(view)
        parts: list[memoryview] = []
        room = max_length
        self._needs_input = False
        while True:
            part = self._content if max_length < 0 else self._content[:room]
            self._content = self._content[len(part) :]
            parts.append(part)
            room -= len(part)
            if self._content or (max_length >= 0 and not room):
                break
            try:
                content = self._next_frame()
            except _Hungry:
                self._needs_input = True
                break
            if content is None:
                self._eof = True
                break
            self._content = memoryview(content)
        return b"".join(parts)

    def _next_frame(self) -> bytes | None:
        """None at the end of the archive. Raises _Hungry, to be called again with more input."""
        source = cast(BinaryIO, self._fed)
        try:
            if self._reader is None:
                self._reader = ArchiveReader(source, self._options, alone=True)
                self._fed.forget()
            content = self._reader.read_frame()
        except _Hungry:
            self._fed.rewind()
            raise
        self._fed.forget()
        return content


class _Hungry(Exception):
    """More input is needed."""


class _Fed:
    """What has been fed, as a source that is read from; raises _Hungry instead of ending."""

    def __init__(self) -> None:
        self._data, self._position = bytearray(), 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._data += data

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise _Hungry
        part = bytes(self._data[self._position : end])
        self._position = end
        return part

    def forget(self) -> None:
        """What has been read, for good."""
        del self._data[: self._position]
        self._position = 0

    def rewind(self) -> None:
        """What has been read since `forget` comes again."""
        self._position = 0

    def rest(self) -> bytes:
        return bytes(self._data)
