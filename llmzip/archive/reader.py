"""An archive, or several that follow each other → verified content, a frame at a time."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator
from typing import BinaryIO

from llmzip.archive import container
from llmzip.archive.frames import FrameReader
from llmzip.archive.header import ModelHeader
from llmzip.archive.options import Options
from llmzip.coding.frame_codec import Progress, silent


class ArchiveReader:
    """Iterates over the verified contents of an archive's frames, and of those archives that
    follow it in the source."""

    def __init__(
        self,
        source: BinaryIO,
        options: Options | None = None,
        progress: Progress | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """Reads the header; if `alone`, nothing beyond the first archive's end is read.

        Raises CorruptArchive, UnsupportedArchive.
        """
        self._reader = container.Reader(source, alone=alone)
        self._frames = FrameReader(options or Options(), progress or silent)
        # of the frames known so far: first byte in the source and in the content, and the number
        # of the archive that they belong to; for `seek`
        self._positions, self._offsets = array("Q"), array("Q")
        self._numbers, self._parts = array("Q"), list[container.Part]()
        if source.seekable():
            self._note(self._reader.place())

    @property
    def model(self) -> ModelHeader | None:
        """What the archive that was read last asks for."""
        return self._reader.model

    def __iter__(self) -> Iterator[bytes]:
        while (content := self.read_frame()) is not None:
            yield content

    def read_frame(self) -> bytes | None:
        """The content of the next frame, verified; None after the last. Raises LlmzipError."""
        frame = self._reader.next_frame()
        if frame is None:
            return None
        content = self._frames.content(frame, self._reader.part.header, self._reader.offset)
        self._reader.accept(frame, content)
        return content

    def seek(self, offset: int) -> int:
        """Turn to the frame that holds byte `offset` of the content, or to the end, and return
        where in the content that is. Decodes nothing: frames are hopped over by their lengths.

        The source must be seekable. Raises CorruptArchive where the lengths lead astray.
        """
        known = bisect.bisect_right(self._offsets, offset) - 1
        self._reader.go(
            container.Place(
                self._parts[self._numbers[known]],
                known,
                self._positions[known],
                self._offsets[known],
            )
        )
        while (place := self._reader.place()) is not None:
            self._note(place)
            self._reader.hop()
            if self._reader.offset > offset:
                self._reader.go(place)
                return place.offset
        return self._reader.offset

    def _note(self, place: container.Place | None) -> None:
        if place is not None and place.frame == len(self._offsets):
            self._positions.append(place.position)
            self._offsets.append(place.offset)
            self._numbers.append(place.part.number)
            if place.part.number == len(self._parts):
                self._parts.append(place.part)
