"""One archive, or several concatenated ones → verified content, a frame at a time."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator
from typing import BinaryIO

from llmzip.archive import container
from llmzip.archive.frame_reader import FrameReader
from llmzip.archive.header import ModelHeader
from llmzip.archive.options import Options, frames_together
from llmzip.coding.progress import Progress, silent


class ArchiveReader:
    """Iterates over the verified contents of the frames of concatenated archives."""

    def __init__(
        self,
        source: BinaryIO,
        options: Options | None = None,
        progress: Progress | None = None,
        *,
        single: bool = False,
    ) -> None:
        """Reads the header. If `single`, reads nothing beyond the end of the first archive; else
        iterating decodes `frames_together` frames, reading as many ahead.

        Raises CorruptArchive, UnsupportedArchive.
        """
        self._reader = container.Reader(source, single=single)
        options = options or Options()
        self._frames = FrameReader(options, progress or silent)
        self._together = 1 if single else frames_together(options.device)
        self._running: Iterator[bytes] | None = None  # what was read ahead stays in it
        # for `seek`, of each frame seen so far: position in the source, offset of its content,
        # number of its archive
        self._positions, self._offsets = array("Q"), array("Q")
        self._numbers, self._archives = array("Q"), list[container.ArchiveStart]()
        if source.seekable():
            self._record(self._reader.position())

    @property
    def model(self) -> ModelHeader | None:
        """The model that the current archive needs."""
        return self._reader.model

    def __iter__(self) -> Iterator[bytes]:
        """A loop that was left goes on where it was."""
        while (content := self._next()) is not None:
            yield content

    def _next(self) -> bytes | None:
        running, self._running = self._running or self._contents(), None
        content = next(running, None)
        if content is not None:  # else at the end, where the archive can be asked again
            self._running = running
        return content

    def _contents(self) -> Iterator[bytes]:
        while frames := self._reader.next_frames(self._together):
            header, offset = self._reader.archive.header, self._reader.offset
            contents = self._frames.contents(frames, header, offset)
            for frame, content in zip(frames, contents, strict=True):
                self._reader.verify(frame, content)
                yield content

    def read_frame(self) -> bytes | None:
        """The content of the next frame, verified; None after the last. Raises LlmzipError."""
        if self._running is not None:
            return self._next()
        frame = self._reader.next_frame()
        if frame is None:
            return None
        content = self._frames.content(frame, self._reader.archive.header, self._reader.offset)
        self._reader.verify(frame, content)
        return content

    def seek(self, offset: int) -> int:
        """Go to the frame that holds byte `offset` of the content, or to the end.

        Returns the offset of that frame. Decodes nothing: frames are skipped by their lengths. The
        source must be seekable. Raises CorruptArchive if the lengths are wrong.
        """
        self._running = None
        known = bisect.bisect_right(self._offsets, offset) - 1
        archive = self._archives[self._numbers[known]]
        self._reader.seek(
            container.FramePosition(archive, known, self._positions[known], self._offsets[known])
        )
        while (position := self._reader.position()) is not None:
            self._record(position)
            self._reader.skip_frame()
            if self._reader.offset > offset:
                self._reader.seek(position)
                return position.offset
        return self._reader.offset

    def _record(self, position: container.FramePosition | None) -> None:
        if position is not None and position.frame == len(self._offsets):
            self._positions.append(position.position)
            self._offsets.append(position.offset)
            self._numbers.append(position.archive.number)
            if position.archive.number == len(self._archives):
                self._archives.append(position.archive)
