"""Contents ↔ frames, by options or by an archive's header; and what a frame's parts cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from llmzip.archive import container
from llmzip.archive.header import Header, ModelHeader, write_header
from llmzip.archive.options import Options
from llmzip.archive.resolve import for_reading, for_writing
from llmzip.coding.frame import MODEL, SMALL, Frame
from llmzip.coding.frame_codec import FrameCodec, Progress, silent
from llmzip.coding.stored import restore, store, stored_costs
from llmzip.errors import LlmzipError, TooLong

_PLAIN_RATIO = 400  # what zstd makes this much smaller needs no model
_SAMPLE = 1024  # bytes a snippet,
_SNIPPETS = 16  # by which a large frame is tried
_DENSE = 3.0  # bits a byte where it is stored: of what is smaller, the memory may make more
_HOPELESS = 1.5  # times the stored size: the whole frame would not do better


class FrameWriter:
    """Contents → frames, whose bytes depend on content and options alone; the model is loaded for
    the first frame that stands to gain from it."""

    def __init__(self, options: Options, progress: Progress | None = None) -> None:
        self._options, self._progress = options, progress or silent
        self._model: tuple[ModelHeader, FrameCodec, Header | None] | None = None

    def header(self, frame: Frame) -> Header:
        """What an archive begins with whose first frame is this one: no model if it needs none."""
        needed = frame.kind == MODEL or not frame.last
        if not needed:
            return write_header(None)
        model, _, short = self._with_model()
        if frame.kind == MODEL and not frame.tokens:
            assert short is not None
            return short
        return write_header(model)

    def _with_model(self) -> tuple[ModelHeader, FrameCodec, Header | None]:
        if self._model is None:
            self._model = for_writing(self._options)
        return self._model

    def _model_fields(self, frame: Frame, first: bool) -> int:
        """Bytes that a model frame needs in the header and by itself, if it is the first."""
        if not first or not frame.tokens:
            return 0
        header = self._with_model()[0]
        texts = header.name.encode() + header.environment.encode() + header.certificate
        return container.MODEL_FIELDS + len(texts)

    def frame(self, content: bytes, *, first: bool, last: bool) -> Frame:
        """The smallest of raw, zstd, LZMA and model, the latter only where it stands a chance.
        Raises LlmzipError."""
        stored = store(content, last)
        if len(content) < 2 or len(stored.payload) * _PLAIN_RATIO < len(content):
            self._progress(len(content), len(stored.payload))
            return stored
        _, codec, short = self._with_model()
        if not _stands_a_chance(codec, content, 8 * len(stored.payload) / len(content)):
            self._progress(len(content), len(stored.payload))
            return stored
        options = self._options
        frame = codec.encode(
            content,
            options.streams,
            self._progress,
            options.stream_tokens,
            short=short is not None and first and last and len(content) <= SMALL,
        )
        if len(frame.payload) + self._model_fields(frame, first) >= len(stored.payload):
            self._progress(0, len(stored.payload) - len(frame.payload))
            return stored
        if (options.verify or options.same_environment) and codec.decode(frame, silent) != content:
            raise LlmzipError("verification failed: the frame does not decode to its content")
        return Frame(
            frame.kind, frame.content_length, frame.payload, frame.tokens, frame.streams, last
        )


def _stands_a_chance(codec: FrameCodec, content: bytes, stored_bits: float) -> bool:
    """Try a large frame by evenly spaced snippets before all of it is scored."""
    if len(content) < 4 * _SAMPLE * _SNIPPETS or stored_bits < _DENSE:
        return True
    stride = len(content) // _SNIPPETS
    snippets = [content[i * stride : i * stride + _SAMPLE] for i in range(_SNIPPETS)]
    return codec.bits_per_byte(snippets) < _HOPELESS * stored_bits


class FrameReader:
    """Frames of one archive → their contents, unverified; the model is loaded for the first
    frame that needs it."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options, self._progress = options, progress
        self._header: Header | None = None
        self._codec: FrameCodec | None = None
        self._length = 0

    def prepare(self, header: Header) -> FrameCodec:
        """Load the model that an archive asks for, if it is not. Raises LlmzipError if it cannot
        be had."""
        if self._codec is None or header != self._header:
            self._codec = None
            self._codec = for_reading(header, self._options)
            self._header = header
        return self._codec

    def content(self, frame: Frame, header: Header, offset: int | None = None) -> bytes:
        """The content of a frame of an archive that begins with `header`.

        Raises CorruptArchive where it shows, and TooLong before what ends more than max_length
        bytes from the start is decoded; `offset` is where it starts, after what was decoded so
        far unless it is given."""
        limit = self._options.max_length
        start = self._length if offset is None else offset
        if limit is not None and start + frame.content_length > limit:
            raise TooLong(f"the archive holds more than {limit} bytes, the most that is allowed")
        if frame.kind == MODEL:
            content = self.prepare(header).decode(frame, self._progress)
        else:
            content = restore(frame)
            self._progress(len(content), len(frame.payload))
        self._length += len(content)
        return content

    def costs(
        self, frame: Frame, header: Header, content: bytes, *, memory: bool = True
    ) -> tuple[list[bytes], np.ndarray]:
        """The tokens of a frame, and bits of each; a stored frame's bits are the same for all.
        Without `memory`, what the language model alone would spend."""
        if frame.kind == MODEL:
            short, codec = not frame.tokens, self.prepare(header)
            codec = codec if memory else FrameCodec(codec.tokens, codec.predictor, mixing=False)
            return codec.costs(content, frame.streams, silent)
        return stored_costs(content, frame)


def costs(
    content: bytes, options: Options, progress: Progress = silent
) -> tuple[list[bytes], np.ndarray]:
    """What compressing `content` as one frame would spend: its tokens, and bits of each,
    float64 [n]. Raises LlmzipError."""
    _, codec, short = for_writing(options)
    return codec.costs(
        content,
        options.streams,
        progress,
        options.stream_tokens,
        short=short is not None and len(content) <= SMALL,
    )


def archive_costs(
    source: BinaryIO, options: Options, progress: Progress = silent
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """The same of each frame of an archive, verified; of stored frames, of their lines."""
    reader = container.Reader(source)
    frames = FrameReader(options, progress)
    while (frame := reader.next_frame()) is not None:
        header = reader.part.header
        content = frames.content(frame, header)
        reader.accept(frame, content)
        yield frames.costs(frame, header, content)
