"""Frames that are coded together: their streams step as one batch of the model, as a GPU wants it,
and each frame is mixed by a thread of its own.

A frame's bytes do not depend on the others: no stream sees another one, and mixing and coder belong
to a frame. While a batch is on the GPU, threads code what it gave before: encoding runs some chunks
ahead, and decoding takes two halves of the frames in turn.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmzip.coding.frame import Frame
from llmzip.coding.streams import deal, gather
from llmzip.coding.token_coder import TokenDecoder, TokenEncoder
from llmzip.errors import CorruptArchive
from llmzip.mixing.distribution import Distributions, of_answers, of_rows

if TYPE_CHECKING:
    from llmzip.coding.frame_codec import FrameCodec
    from llmzip.coding.lookups import Lookups
    from llmzip.range_coder import Encoder

_AHEAD = 4  # chunks of answers that wait to be coded


class _Threads:
    """Threads of which each codes some frames, so that a frame's tokens stay in order."""

    def __init__(self, count: int) -> None:
        self._pools = [ThreadPoolExecutor(1) for _ in range(max(1, count))]

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *exception: object) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def start(self, frame: int, work: Any, *arguments: Any) -> Future[Any]:
        """Begin work on a frame, after all that was begun for it before."""
        return self._pools[frame % len(self._pools)].submit(work, *arguments)


@dataclass
class _Writing:
    """A frame that is being encoded; its streams are columns first … first + streams - 1."""

    content: bytes
    table: np.ndarray  # ranks int32 [steps, streams]
    last: int  # streams of the last step
    first: int
    coder: TokenEncoder
    encoder: Encoder

    def rows(self, start: int, stop: int) -> int:
        """How many tokens the steps from `start` below `stop` have."""
        steps, streams = self.table.shape
        count = max(0, min(stop, steps) - start) * streams
        return int(count - (streams - self.last) * (start < steps <= stop))

    def code(self, answers: np.ndarray, starts: np.ndarray, known: np.ndarray) -> None:
        streams = self.table.shape[1]
        given = of_answers(answers, starts)
        self.encoder.put_bits(*self.coder.code(given, 0, streams, known))


def encode(
    codec: FrameCodec,
    lookups: Lookups,
    parts: Sequence[tuple[bytes, np.ndarray, int]],
    threads: int,
    progress: Callable[[float], None],
) -> list[bytes]:
    """Content, its ranks and the number of streams of each frame → payloads. `progress` is told the
    share that is done."""
    from llmzip.range_coder import Encoder

    frames, first = [], 0
    for content, ranks, streams in parts:
        table, last = deal(ranks, streams)
        state = codec.new_state(streams, len(content))
        coder = TokenEncoder(codec.vocabulary, state, mixing=codec.level is not None)
        frames.append(_Writing(content, table, last, first, coder, Encoder()))
        first += streams
    # rank n, which no token has, stands where a frame is over
    steps, none = max(len(frame.table) for frame in frames), len(codec.vocabulary)
    known = np.full((steps, first), none, dtype=np.int32)
    for frame in frames:
        height, streams = frame.table.shape
        known[:height, frame.first : frame.first + streams] = frame.table
        known[height - 1, frame.first + frame.last : frame.first + streams] = none
    # chunks whose answers are being found, and chunks that are being coded
    asked: deque[tuple[Any, list[np.ndarray], int, int]] = deque()
    coding: deque[list[Future[None]]] = deque()
    with _Threads(min(threads, len(frames))) as pool:
        step = 0
        for logits in codec.scores(np.where(known == none, 0, known)):
            stop = step + len(logits)
            ranks = known[step:stop]
            offsets, own = _places(lookups.counts(ranks), frames)
            ready = lookups.answers(
                logits.reshape(-1, logits.shape[-1]), ranks.reshape(-1), offsets.reshape(-1),
                int(own[-1][-1]),
            )  # fmt: skip
            asked.append((ready, own, step, stop))
            step = stop
            if len(asked) > 1:
                coding.append(_start(pool, frames, *asked.popleft()))
            if len(coding) > _AHEAD:
                _wait(coding.popleft())
            progress(step / steps)
        coding.extend(_start(pool, frames, *chunk) for chunk in asked)
        for futures in coding:
            _wait(futures)
    return [frame.encoder.payload() for frame in frames]


def _places(counts: np.ndarray, frames: Sequence[_Writing]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Numbers of answers [steps, S] → where those of each token begin, frame by frame, int64
    [steps, S]; and for each frame the same of its tokens, with the end."""
    offsets, own, base = np.empty_like(counts), [], 0
    for frame in frames:
        part = slice(frame.first, frame.first + frame.table.shape[1])
        ends = base + np.cumsum(counts[:, part])
        starts = np.concatenate([[base], ends])
        offsets[:, part] = starts[:-1].reshape(counts[:, part].shape)
        own.append(starts)
        base = int(starts[-1])
    return offsets, own


def _start(
    pool: _Threads, frames: Sequence[_Writing], ready: Any, own: Any, step: int, stop: int
) -> list[Future[None]]:
    """Have a chunk coded, once its answers are there."""
    answers, futures = ready(), []
    for i, (frame, starts) in enumerate(zip(frames, own, strict=True)):
        if rows := frame.rows(step, stop):
            known = frame.table[step:stop].reshape(-1)[:rows]
            low, high = starts[0], starts[-1]
            futures.append(
                pool.start(i, frame.code, answers[low:high], starts[: rows + 1] - low, known)
            )
    return futures


def _wait(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()


@dataclass
class _Reading:
    """A frame that is being decoded."""

    frame: Frame
    steps: int
    last: int
    coder: TokenDecoder
    table: np.ndarray  # ranks int32 [steps, streams], so far
    first: int = 0
    left: int = field(init=False)  # bytes of content

    def __post_init__(self) -> None:
        self.left = self.frame.content_length

    def code(self, given: Distributions, step: int, lengths: np.ndarray) -> None:
        rows = len(given.frequencies)
        ranks = self.coder.code(given, 0, self.frame.streams)
        self.table[step, :rows] = ranks
        self.left -= int(lengths[ranks].sum())
        if self.left < 0:
            raise CorruptArchive("the tokens spell more than the frame holds")


class _Half:
    """Some of the frames, whose streams step as one batch."""

    def __init__(self, codec: FrameCodec, lookups: Lookups, frames: Sequence[_Reading]) -> None:
        self._codec, self._lookups, self.frames = codec, lookups, frames
        first = 0
        for frame in frames:
            frame.first, first = first, first + frame.frame.streams
        self.steps = max(frame.steps for frame in frames)
        self._ranks = np.zeros(first, dtype=np.int32)
        self._run = codec.new_run(first, self.steps)
        self.step = 0
        self._ready = lookups.rows(self._run.first())
        self._futures: list[Future[None]] = []

    def submit(self, pool: _Threads, number: int) -> None:
        """Have the distributions of this step coded; `number` of its first frame."""
        given, lengths = self._ready(), self._codec.vocabulary.tokens.lengths
        for i, frame in enumerate(self.frames):
            if self.step >= frame.steps:
                continue
            rows = frame.frame.streams if self.step < frame.steps - 1 else frame.last
            part = slice(frame.first, frame.first + rows)
            own = of_rows(given.frequencies[part], given.sums[part], given.most[part])
            self._futures.append(pool.start(number + i, frame.code, own, self.step, lengths))

    def advance(self) -> bool:
        """Wait for the step's tokens, and begin the next step; False after the last."""
        _wait(self._futures)
        self._futures = []
        self.step += 1
        if self.step == self.steps:
            return False
        for frame in self.frames:
            if self.step <= frame.steps:
                part = slice(frame.first, frame.first + frame.frame.streams)
                self._ranks[part] = frame.table[self.step - 1]
        self._ready = self._lookups.rows(self._codec.logits_after(self._run, self._ranks))
        return True


def decode(
    codec: FrameCodec,
    lookups: Lookups,
    frames: Sequence[Frame],
    threads: int,
    progress: Callable[[float], None],
) -> list[bytes]:
    """MODEL frames with a number of tokens → their content, unverified. Raises CorruptArchive."""
    readings = []
    for frame in frames:
        steps = -(-frame.tokens // frame.streams)
        state = codec.new_state(frame.streams, frame.content_length)
        coder = TokenDecoder(codec.vocabulary, state, frame.payload, mixing=codec.level is not None)
        table = np.zeros((steps, frame.streams), dtype=np.int32)
        last = frame.tokens - (steps - 1) * frame.streams
        readings.append(_Reading(frame, steps, last, coder, table))
    middle = (len(readings) + 1) // 2
    parts = [part for part in (readings[:middle], readings[middle:]) if part]
    halves = [_Half(codec, lookups, part) for part in parts]
    numbers = [0, *itertools.accumulate(len(part) for part in parts)]
    with _Threads(min(threads, len(readings))) as pool:
        active = list(zip(halves, numbers, strict=False))
        for half, number in active:
            half.submit(pool, number)
        while active:
            for half, number in list(active):
                # the other half is being coded while this one steps
                if half.advance():
                    half.submit(pool, number)
                    progress(half.step / half.steps)
                else:
                    active.remove((half, number))
    return [codec.text(gather(reading.table, reading.last)) for reading in readings]
