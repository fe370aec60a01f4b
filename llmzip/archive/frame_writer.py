"""Content → frames, by options."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from llmzip.archive.codecs import codec_for_writing
from llmzip.archive.header import Header, ModelHeader, write_header
from llmzip.archive.options import Options
from llmzip.coding.frame import MODEL, SMALL, Frame
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.progress import Progress, silent
from llmzip.coding.stored import quick_size, store
from llmzip.coding.streams import STREAM_TOKENS, Cut
from llmzip.errors import LlmzipError

_MODEL_FIELDS = 12  # bytes that a model frame needs in addition to those of a stored one, about
# By default, two threads step 8 streams each, which costs no more than more of them; 16 each, and
# shorter ones, if the model gains by streams.
_FEW_STREAMS, _MANY_STREAMS, _TOKENS_OF_MANY = 16, 32, STREAM_TOKENS // 2
_FEWEST_STREAMS = 4  # of content
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
                cut_of(options, content, size, many=codec.predictor.gains_by_streams),
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
                many = codec.predictor.gains_by_streams
                cuts = [cut_of(self._options, contents[i], sizes[i], many=many) for i in tried]
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


def cut_of(options: Options, content: bytes, size: int, *, many: bool) -> Cut:
    """Few streams lose less, most of all where a text repeats itself; a GPU needs many. `size` is
    that of zstd; if `many`, the model gains by streams."""
    if options.streams is not None or options.stream_tokens is not None:
        return Cut(options.streams, options.stream_tokens or STREAM_TOKENS)
    if options.device.startswith("cuda"):
        return Cut()
    if size * _REPETITIVE < len(content):
        return Cut(most=_FEWEST_STREAMS)
    return Cut(None, _TOKENS_OF_MANY, _MANY_STREAMS) if many else Cut(most=_FEW_STREAMS)


def _may_win(codec: FrameCodec, content: bytes, zstd_bits: float) -> bool:
    """Score evenly spaced snippets of a large frame; True if the model may beat a stored one."""
    if len(content) < 4 * _SNIPPET_BYTES * _SNIPPETS or zstd_bits < _SAMPLE_BITS_PER_BYTE:
        return True
    stride = len(content) // _SNIPPETS
    snippets = [content[i * stride : i * stride + _SNIPPET_BYTES] for i in range(_SNIPPETS)]
    return codec.bits_per_byte(snippets) < _SAMPLE_FACTOR * zstd_bits
