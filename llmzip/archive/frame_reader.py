"""Frames → their content, by an archive's header."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from llmzip.archive.codecs import codec_for_reading
from llmzip.archive.header import Header
from llmzip.archive.options import Options
from llmzip.coding.frame import MODEL, Frame
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.progress import Progress, silent
from llmzip.coding.stored import restore, stored_costs
from llmzip.coding.streams import Cut
from llmzip.errors import LlmzipError, TooLong


class FrameReader:
    """Frames → their content, not verified yet.

    The model is loaded for the first frame that needs it.
    """

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options, self._progress = options, progress
        self._header: Header | None = None
        self._codec: FrameCodec | None = None
        self._length = 0

    def prepare(self, header: Header) -> FrameCodec:
        """Load the model that an archive needs, unless it is loaded already. Raises LlmzipError."""
        if self._codec is None or header != self._header:
            self._codec = None
            self._codec = codec_for_reading(header, self._options)
            self._header = header
        return self._codec

    def content(self, frame: Frame, header: Header, offset: int | None = None) -> bytes:
        """The content of a frame of an archive that begins with `header`.

        `offset` is that of its content; by default it follows what was decoded so far. Raises
        CorruptArchive if decoding fails, TooLong before decoding content that exceeds max_length.
        """
        limit = self._options.max_length
        start = self._length if offset is None else offset
        if limit is not None and start + frame.content_length > limit:
            raise TooLong(f"the archive holds more than {limit} bytes, the limit")
        if frame.kind == MODEL:
            content = self.prepare(header).decode(frame, self._progress)
        else:
            content = restore(frame)
            self._progress(len(content), len(frame.payload))
        self._length += len(content)
        return content

    def contents(self, frames: Sequence[Frame], header: Header, offset: int) -> Iterator[bytes]:
        """The contents of frames that follow each other, the first of which begins at `offset`;
        decoded together if they can be, else one by one, so that a damaged one harms no other."""
        decoded: dict[int, bytes] = {}
        many = [i for i, frame in enumerate(frames) if frame.kind == MODEL and frame.tokens]
        end = offset + sum(frame.content_length for frame in frames)
        limit = self._options.max_length
        if len(many) > 1 and (limit is None or end <= limit):
            codec = self.prepare(header)
            with contextlib.suppress(LlmzipError):  # raised again below, by the frame it is of
                found = codec.decode_together([frames[i] for i in many], self._progress)
                decoded = dict(zip(many, found, strict=True))
        for i, frame in enumerate(frames):
            if i in decoded:
                content = decoded.pop(i)
                self._length += len(content)
            else:
                content = self.content(frame, header, offset)
            offset += frame.content_length
            yield content

    def costs(
        self, frame: Frame, header: Header, content: bytes, *, mixing: bool = True
    ) -> tuple[list[bytes], np.ndarray]:
        """Tokens of a frame, and bits of each, float64 [n]; of a stored frame, its lines.

        Without `mixing`, the bits that the language model alone would take.
        """
        if frame.kind == MODEL:
            codec = self.prepare(header)
            codec = codec if mixing else codec.without_mixing()
            return codec.costs(content, Cut(frame.streams), silent)
        return stored_costs(content, frame)
