"""Ids of a frame ↔ streams that step together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

STREAM_TOKENS = 6144
MOST_STREAMS = 256  # KV caches are large


class Cut(NamedTuple):
    """How the tokens of a frame are cut into streams."""

    streams: int | None = None  # None: as many as the other two allow
    tokens: int = STREAM_TOKENS  # no stream is shorter, unless it is the only one
    most: int = MOST_STREAMS

    def count(self, tokens: int) -> int:
        """The number of streams of so many tokens."""
        wanted = self.streams or min(self.most, tokens // self.tokens)
        return max(1, min(wanted, tokens))


def deal(ids: np.ndarray, streams: int) -> tuple[np.ndarray, int]:
    """Cut ids [n] into S consecutive streams → (int32 [steps, S], streams of the last step).

    The first streams are one token longer than the others, which are padded with id 0.
    """
    steps = -(-len(ids) // streams)
    last = len(ids) - (steps - 1) * streams
    lengths = np.full(streams, steps - 1)
    lengths[:last] += 1
    table = np.zeros((streams, steps), dtype=np.int32)
    table[np.arange(steps) < lengths[:, None]] = ids
    return np.ascontiguousarray(table.T), last


def gather(table: np.ndarray, last: int) -> np.ndarray:
    """The inverse of `deal`."""
    steps, streams = table.shape
    lengths = np.full(streams, steps - 1)
    lengths[:last] += 1
    ids: np.ndarray = table.T[np.arange(steps) < lengths[:, None]]
    return ids
