"""Content in pieces of any length → an archive, written `frames_together` frames at a time."""

from __future__ import annotations

from typing import BinaryIO

from llmzip.archive import container
from llmzip.archive.frame_writer import FrameWriter
from llmzip.archive.options import Options, bytes_like, frames_together
from llmzip.coding.frame import Frame
from llmzip.coding.progress import Progress


class ArchiveWriter:
    """Compresses what is written to it; `finish` completes the archive."""

    def __init__(
        self, sink: BinaryIO, options: Options | None = None, progress: Progress | None = None
    ) -> None:
        self._sink, self._options = sink, options or Options()
        self._frames = FrameWriter(self._options, progress)
        self._buffer = bytearray()
        self._together = frames_together(self._options.device)
        self._writer: container.Writer | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add content and write the frames that are complete; returns its length in bytes.

        Raises TypeError if `data` is not bytes-like, LlmzipError.
        """
        with bytes_like(data, "write") as view:
            self._buffer += view
            length = view.nbytes
        size = self._options.frame_size * self._together
        while len(self._buffer) > size:  # not >=: the last frame must be marked
            self._write_frames(self._buffer[:size], last=False)
            del self._buffer[:size]
        return length

    def finish(self) -> None:
        """Write the last frames. Raises LlmzipError."""
        self._write_frames(self._buffer, last=True)
        self._buffer.clear()

    def _write_frames(self, content: bytearray, last: bool) -> None:
        size = self._options.frame_size
        contents = [bytes(content[i : i + size]) for i in range(0, max(1, len(content)), size)]
        frames = self._frames.frames(contents, first=self._writer is None, last=last)
        for frame, part in zip(frames, contents, strict=True):
            self.append(frame, part)

    def append(self, frame: Frame, content: bytes) -> None:
        """Write a frame that a FrameWriter with the same options made from `content`."""
        if self._writer is None:
            self._writer = container.Writer(self._sink, self._frames.header(frame))
        self._writer.write(frame, content)
