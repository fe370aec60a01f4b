"""Content ↔ frames, by options or by an archive's header; and how many bits each token takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from llmzip.archive import container
from llmzip.archive.codecs import codec_for_reading, codec_for_writing
from llmzip.archive.header import Header, ModelHeader, write_header
from llmzip.archive.options import Options
from llmzip.coding.frame import MODEL, SMALL, Frame
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.progress import Progress, silent
from llmzip.coding.stored import quick_size, restore, store, stored_costs
from llmzip.coding.streams import STREAM_TOKENS, Cut
from llmzip.errors import LlmzipError, TooLong

_MODEL_FIELDS = 12  # bytes that a model frame needs in addition to those of a stored one, about
_FEW_STREAMS = 16  # by default: two threads step 8 each, which costs no more than more of them;
_FEWEST_STREAMS = 4  # by default, of content
_REPETITIVE = 4.4  # times as long as zstd makes it
_SKIP_RATIO = 400  # content that zstd makes this much smaller needs no model
_LEAST_STORED = 0.7  # of what zstd needs, the least that a stored frame takes (texts: 0.80 to 0.99)
# A sample of a large frame is scored first. If the model needs this many times the bits of zstd,
# the frame is stored; unless these are few, as mixing may gain there.
_SNIPPETS = 16
_SNIPPET_BYTES = 1024
_SAMPLE_FACTOR = 1.5
_SAMPLE_BITS_PER_BYTE = 3.2  # of zstd, at least


class FrameWriter:
    """Content → frames, whose bytes depend only on content and options.

    The model is loaded for the first frame that may gain from it.
    """

    def __init__(self, options: Options, progress: Progress | None = None) -> None:
        self._options, self._progress = options, progress or silent
        self._model: tuple[ModelHeader, FrameCodec, Header | None] | None = None

    def header(self, frame: Frame) -> Header:
        """The header of an archive with this first frame; without a model if none is needed."""
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
            self._model = codec_for_writing(self._options)
        return self._model

    def _model_fields(self, frame: Frame, first: bool) -> int:
        """Bytes that a first frame adds to the header and its own fields by needing the model."""
        if not first or not frame.tokens:
            return 0
        header = self._with_model()[0]
        texts = header.name.encode() + header.environment.encode()
        return _MODEL_FIELDS + len(texts + header.certificate + header.prime)

    def frame(self, content: bytes, *, first: bool, last: bool) -> Frame:
        """The smallest of a raw, zstd, LZMA and model frame; stored ones are not made where they
        hardly ever win.

        The model is not tried if a sample shows that it cannot win. Raises LlmzipError.
        """
        size, coded = quick_size(content), None
        if self._may_gain(content, size):
            _, codec, short = self._with_model()
            options = self._options
            coded = codec.encode(
                content,
                _cut(options, content, size),
                self._progress,
                short=short is not None and first and last and len(content) <= SMALL,
            )
        stored = store(content, last) if self._may_lose(coded, size, first) else None
        return self._smaller(coded, stored, content, first, last)

    def frames(self, contents: Sequence[bytes], *, first: bool, last: bool) -> list[Frame]:
        """`frame` of each of the contents, coded together; `first` if they begin the archive,
        `last` if they end it."""
        count = len(contents)
        if count == 1:
            return [self.frame(contents[0], first=first, last=last)]
        begins = [first and i == 0 for i in range(count)]
        ends = [last and i == count - 1 for i in range(count)]
        coded: list[Frame | None] = [None] * count
        stored: list[Frame | None] = [None] * count
        with ThreadPoolExecutor() as pool:
            sizes = list(pool.map(quick_size, contents))
            tried = [i for i in range(count) if self._may_gain(contents[i], sizes[i])]
            if tried:
                _, codec, _ = self._with_model()
                cuts = [_cut(self._options, contents[i], sizes[i]) for i in tried]
                found = codec.encode_together([contents[i] for i in tried], cuts, self._progress)
                for i, frame in zip(tried, found, strict=True):
                    coded[i] = frame
            others = [i for i in range(count) if self._may_lose(coded[i], sizes[i], begins[i])]
            made = pool.map(store, [contents[i] for i in others], [ends[i] for i in others])
            for i, frame in zip(others, made, strict=True):
                stored[i] = frame
        return [
            self._smaller(*frame)
            for frame in zip(coded, stored, contents, begins, ends, strict=True)
        ]

    def _may_gain(self, content: bytes, size: int) -> bool:
        """Whether the model may make a smaller frame than a stored one; `size` is that of zstd."""
        if len(content) <= 1 or size * _SKIP_RATIO < len(content):
            return False
        _, codec, _ = self._with_model()
        return _may_win(codec, content, 8 * size / len(content))

    def _may_lose(self, coded: Frame | None, size: int, first: bool) -> bool:
        """Whether a stored frame may be smaller than the model's."""
        return coded is None or self._needed(coded, first) >= size * _LEAST_STORED

    def _needed(self, coded: Frame, first: bool) -> int:
        return len(coded.payload) + self._model_fields(coded, first)

    def _smaller(
        self, coded: Frame | None, stored: Frame | None, content: bytes, first: bool, last: bool
    ) -> Frame:
        """The model's frame or the stored one, whichever is smaller."""
        if coded is None:
            assert stored is not None
            self._progress(len(content), len(stored.payload))
            return stored
        if stored is not None and self._needed(coded, first) >= len(stored.payload):
            self._progress(0, len(stored.payload) - len(coded.payload))
            return stored
        options, (_, codec, _) = self._options, self._with_model()
        if (options.verify or options.same_environment) and codec.decode(coded, silent) != content:
            raise LlmzipError("verification failed: the frame does not decode to its content")
        return replace(coded, last=last)


def _cut(options: Options, content: bytes, size: int) -> Cut:
    """Few streams lose less, most of all where a text repeats itself; a GPU needs many."""
    if options.streams is not None or options.stream_tokens is not None:
        return Cut(options.streams, options.stream_tokens or STREAM_TOKENS)
    if options.device.startswith("cuda"):
        return Cut()
    repetitive = size * _REPETITIVE < len(content)
    return Cut(most=_FEWEST_STREAMS if repetitive else _FEW_STREAMS)


def _may_win(codec: FrameCodec, content: bytes, zstd_bits: float) -> bool:
    """Score evenly spaced snippets of a large frame; True if the model may beat a stored one."""
    if len(content) < 4 * _SNIPPET_BYTES * _SNIPPETS or zstd_bits < _SAMPLE_BITS_PER_BYTE:
        return True
    stride = len(content) // _SNIPPETS
    snippets = [content[i * stride : i * stride + _SNIPPET_BYTES] for i in range(_SNIPPETS)]
    return codec.bits_per_byte(snippets) < _SAMPLE_FACTOR * zstd_bits


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


def costs(
    content: bytes, options: Options, progress: Progress = silent
) -> tuple[list[bytes], np.ndarray]:
    """Tokens of `content` compressed as one frame, and bits of each, float64 [n].

    Raises LlmzipError.
    """
    _, codec, _ = codec_for_writing(options)
    return codec.costs(content, _cut(options, content, quick_size(content)), progress)


def archive_costs(
    source: BinaryIO, options: Options, progress: Progress = silent
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """The same for each frame of an archive, verified; for stored frames, their lines."""
    reader = container.Reader(source)
    frames = FrameReader(options, progress)
    while (frame := reader.next_frame()) is not None:
        header = reader.archive.header
        content = frames.content(frame, header)
        reader.verify(frame, content)
        yield frames.costs(frame, header, content)
