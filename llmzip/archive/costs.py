"""How many bits each token takes: of a text as it would be coded, or of an archive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from llmzip.archive import container
from llmzip.archive.codecs import codec_for_writing
from llmzip.archive.frame_reader import FrameReader
from llmzip.archive.frame_writer import cut_of
from llmzip.archive.options import Options
from llmzip.coding.progress import Progress, silent
from llmzip.coding.stored import quick_size


def costs(
    content: bytes, options: Options, progress: Progress = silent
) -> tuple[list[bytes], np.ndarray]:
    """Tokens of `content` compressed as one frame, and bits of each, float64 [n].

    Raises LlmzipError.
    """
    _, codec, _ = codec_for_writing(options)
    cut = cut_of(options, content, quick_size(content), many=codec.predictor.gains_by_streams)
    return codec.costs(content, cut, progress)


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
