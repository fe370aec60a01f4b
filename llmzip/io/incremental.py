"""`Compressor` and `Decompressor`: bytes in pieces, as in lzma and compression.zstd."""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from llmzip.archive.options import Options, bytes_like
from llmzip.archive.reader import ArchiveReader
from llmzip.archive.writer import ArchiveWriter


class Compressor:
    """Content in pieces → an archive in pieces, to be concatenated."""

    def __init__(self, options: Options | None = None) -> None:
        self._sink = io.BytesIO()
        self._writer = ArchiveWriter(self._sink, options)
        self._flushed = False

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        """Add content; returns the frames that are complete now, often b"".

        Buffers as many frames of `Options.frame_size` bytes as are coded together: one for each
        core, at most 16, or more on a GPU. Raises LlmzipError, ValueError after `flush`.
        """
        if self._flushed:
            raise ValueError("the compressor has been flushed")
        with bytes_like(data, "compress") as view:
            self._writer.write(view)
        return self._take()

    def flush(self) -> bytes:
        """The rest of the archive. Raises LlmzipError, ValueError if called again."""
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
    """One archive in pieces → its content in pieces, each of them verified.

    What follows the archive's end, such as a further archive, is left in `unused_data`. Holds at
    most a frame's payload and its content, 64 MiB each, in addition to the model.
    """

    def __init__(self, options: Options | None = None) -> None:
        self._options = options
        self._input = _InputBuffer()
        self._reader: ArchiveReader | None = None
        self._content = memoryview(b"")  # decoded but not returned yet
        self._eof = False
        self._needs_input = True

    @property
    def eof(self) -> bool:
        """Whether the end of the archive has been reached and verified.

        Before that, the content so far is intact but incomplete.
        """
        return self._eof

    @property
    def needs_input(self) -> bool:
        """False if `decompress(b"")` may return more."""
        return self._needs_input

    @property
    def unused_data(self) -> bytes:
        """What follows the end of the archive; b"" before `eof`."""
        return self._input.rest() if self._eof else b""

    def decompress(self, data: bytes | bytearray | memoryview, max_length: int = -1) -> bytes:
        """Add bytes of the archive; returns up to `max_length` bytes of content (-1: no limit).

        A frame is decoded when it is complete. Raises EOFError after the end, LlmzipError if the
        archive is damaged.
        """
        if self._eof:
            raise EOFError("already at the end of the archive")
        with bytes_like(data, "decompress") as view:
            self._input.append(view)
        parts: list[memoryview] = []
        left = max_length
        self._needs_input = False
        while True:
            part = self._content if max_length < 0 else self._content[:left]
            self._content = self._content[len(part) :]
            parts.append(part)
            left -= len(part)
            if self._content or (max_length >= 0 and not left):
                break
            try:
                content = self._next_frame()
            except _NeedsInput:
                self._needs_input = True
                break
            if content is None:
                self._eof = True
                break
            self._content = memoryview(content)
        return b"".join(parts)

    def _next_frame(self) -> bytes | None:
        """None at the end. Raises _NeedsInput; then call again with more input."""
        source = cast(BinaryIO, self._input)
        try:
            if self._reader is None:
                self._reader = ArchiveReader(source, self._options, single=True)
                self._input.drop()
            content = self._reader.read_frame()
        except _NeedsInput:
            self._input.rewind()
            raise
        self._input.drop()
        return content


class _NeedsInput(Exception):
    """The input ends within a frame."""


class _InputBuffer:
    """A source to read from; raises _NeedsInput where it ends."""

    def __init__(self) -> None:
        self._data, self._position = bytearray(), 0

    def append(self, data: bytes | bytearray | memoryview) -> None:
        self._data += data

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise _NeedsInput
        part = bytes(self._data[self._position : end])
        self._position = end
        return part

    def drop(self) -> None:
        """Drop what has been read."""
        del self._data[: self._position]
        self._position = 0

    def rewind(self) -> None:
        """Read again what has been read since `drop`."""
        self._position = 0

    def rest(self) -> bytes:
        return bytes(self._data)
