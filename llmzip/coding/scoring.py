"""Known tokens of a frame → the answers of its model, scored in threads, in the order of coding.

Each part of the streams has a thread, which runs the model ahead, alone or as one of a team, and
looks up what the walks to its tokens will ask. What is left to do in order, mixing, gets some
integers a token. Numba is loaded when it is needed, not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from llmzip.coding.frame_codec import FrameCodec
    from llmzip.coding.threads import StreamThreads
    from llmzip.mixing.distribution import Distributions

_TOKENS = 512  # that are coded at a time, about

_Step = tuple[np.ndarray, np.ndarray]  # numbers of answers of each token, int64 [n]; the answers


class Chunk(NamedTuple):
    """Tokens in the order of coding: step by step, in each step stream by stream."""

    ranks: np.ndarray  # int32 [k]
    given: Distributions  # answers
    share: float  # of the frame's steps that are done with these

    def tokens(self) -> Iterator[Distributions]:
        """The answers of each token alone."""
        from llmzip.mixing.distribution import of_answers

        bounds = self.given.starts.tolist()
        for start, stop in pairwise(bounds):
            own = self.given.answers[start:stop]
            yield of_answers(own, np.array([0, len(own)], dtype=np.int64))


def scored(
    codec: FrameCodec, table: np.ndarray, last: int, threads: StreamThreads, team: Any
) -> Iterator[Chunk]:
    """Ranks int32 [steps, S], of which the last step has the first `last`, → all tokens. A team
    divides the steps of the model."""
    from llmzip.mixing.distribution import of_answers

    steps, streams = table.shape
    known = table.copy()
    known[-1, last:] = len(codec.vocabulary)  # no token: nothing is asked
    codec.lookups()  # made once, before the threads need it
    rows = zip(
        *(
            threads.ahead(_steps(codec, table[:, part], known[:, part], team))
            for part in threads.parts
        ),
        strict=True,
    )
    done = 0
    while some := list(islice(rows, max(1, _TOKENS // streams))):
        counts = np.concatenate([counts for row in some for counts, _ in row])
        answers = np.concatenate([answers for row in some for _, answers in row])
        start, done = done, done + len(some)
        ranks = known[start:done].reshape(-1)
        if done == steps:
            ranks = ranks[: len(ranks) - streams + last]
        starts = np.concatenate([[0], np.cumsum(counts[: len(ranks)])])
        yield Chunk(ranks, of_answers(answers, starts), done / steps)


def _steps(
    codec: FrameCodec, table: np.ndarray, known: np.ndarray, team: Any
) -> Iterator[list[_Step]]:
    """The steps of one part of the streams, some at a time."""
    lookups, done = codec.lookups(), 0
    for logits in codec.scores(table, team):
        ranks = known[done : done + len(logits)]
        counts = lookups.counts(ranks)
        ends = np.cumsum(counts)
        answers = lookups.answers(
            logits.reshape(ranks.size, -1), ranks.reshape(-1), ends - counts.reshape(-1),
            int(ends[-1]),
        )()  # fmt: skip
        done += len(logits)
        bounds = [0, *ends[ranks.shape[1] - 1 :: ranks.shape[1]].tolist()]
        yield [(own, answers[a:b]) for own, (a, b) in zip(counts, pairwise(bounds), strict=True)]
