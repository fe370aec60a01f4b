"""Frames → batches that fit into the model's memory → payloads or content, by `together`.

What a batch holds changes no byte: it is the same in which company a frame is coded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from llmzip.coding import together
from llmzip.coding.frame import MODEL, Frame
from llmzip.coding.progress import Progress, Share
from llmzip.coding.streams import Cut
from llmzip.inference.base import cores

if TYPE_CHECKING:
    from llmzip.coding.frame_codec import FrameCodec

Part = tuple[bytes, np.ndarray, int]  # content, its ranks int32, number of streams


def tokenised(codec: FrameCodec, contents: Sequence[bytes], cuts: Sequence[Cut]) -> list[Part]:
    """Contents, with their tokens and how many streams these are cut into."""
    with ThreadPoolExecutor(cores()) as pool:
        every = list(pool.map(codec.ranks, contents))
    return [
        (content, ranks, codec.plan_streams(len(ranks), cut))
        for content, ranks, cut in zip(contents, every, cuts, strict=True)
    ]


def encode(
    codec: FrameCodec, parts: Sequence[Part], progress: Progress, *, short: bool = False
) -> list[Frame]:
    """The MODEL frames of contents, none of them empty; `short` as for `FrameCodec.encode`."""
    frames: list[Frame] = []
    shapes = [(streams, -(-len(ranks) // streams)) for _, ranks, streams in parts]
    for batch in _batches(codec, shapes):
        some = parts[batch]
        report = Share(progress, sum(len(content) for content, _, _ in some), lambda: 0)
        payloads = together.encode(codec, codec.lookups(), some, cores(), report.done)
        progress(0, sum(map(len, payloads)))
        for (content, ranks, streams), payload in zip(some, payloads, strict=True):
            tokens = 0 if short and streams == 1 else len(ranks)
            frames.append(Frame(MODEL, len(content), payload, tokens, streams))
    return frames


def decode(codec: FrameCodec, frames: Sequence[Frame], progress: Progress) -> list[bytes]:
    """The content of MODEL frames with a number of tokens, unverified. Raises CorruptArchive,
    UnsupportedArchive."""
    contents: list[bytes] = []
    for batch in _batches(codec, [codec.shape(frame) for frame in frames]):
        some = frames[batch]
        length, payload = (
            sum(frame.content_length for frame in some),
            sum(len(frame.payload) for frame in some),
        )
        report = Share(progress, length, None, payload)
        contents += together.decode(codec, codec.lookups(), some, cores(), report.done)
        report.done(1.0)
    return contents


def _batches(codec: FrameCodec, shapes: Sequence[tuple[int, int]]) -> Iterator[slice]:
    """Frames of so many streams and steps, as many together as fit into memory."""
    start, total = 0, 0
    for i, (streams, steps) in enumerate(shapes):
        if i > start and total + streams > codec.predictor.most_streams(steps):
            yield slice(start, i)
            start, total = i, 0
        total += streams
    if shapes:
        yield slice(start, len(shapes))
