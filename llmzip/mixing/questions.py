"""What the walk to a token asks of its distribution: known beforehand to who encodes.

The walk of `walk` asks for sums of frequencies below a rank, and for the likeliest rank of a range,
and which ones depends on the token alone. Who holds the frequencies elsewhere (on a GPU) answers
with some integers a token instead of a row of the vocabulary. Knows nothing of contexts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmzip.compiled import compiled_in_place, inlined_in_place
from llmzip.mixing.distribution import ANSWER_BITS, BLOCK, likeliest, sum_before, sum_blocks
from llmzip.mixing.vocabulary import SortedTokens, Vocabulary, first_from

SUM = -1  # in place of `high`


class Questions(NamedTuple):
    """The questions of every rank, one after the other.

    A question (low, SUM) asks for the sum of the frequencies of all ranks below `low`; (low, high)
    for the likeliest of low … high - 1, the first of several: rank << 32 | frequency.
    """

    starts: np.ndarray  # int64 [n + 2]: where those of each rank begin; rank n, no token, has none
    low: np.ndarray  # int32 [questions]
    high: np.ndarray  # int32 [questions]

    def counts(self, ranks: np.ndarray) -> np.ndarray:
        """How many questions each of the int32 ranks has, int64."""
        found: np.ndarray = self.starts[ranks + 1] - self.starts[ranks]
        return found


def questions_of(vocabulary: Vocabulary) -> Questions:
    """The questions of all ranks of a vocabulary."""
    tokens, nothing = vocabulary.tokens, np.zeros(0, dtype=np.int32)
    starts = np.zeros(len(vocabulary) + 2, dtype=np.int64)
    _list(tokens, starts, nothing, nothing)
    starts[-1] = starts[-2]
    low = np.empty(starts[-1], dtype=np.int32)
    high = np.empty_like(low)
    _list(tokens, starts, low, high)
    return Questions(starts, low, high)


@compiled_in_place
def _list(tokens: SortedTokens, starts: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Counts questions into `starts`, or lists them if there is room for them."""
    for rank in range(len(tokens.lengths)):
        end = _list_of(tokens, rank, starts[rank], low, high)
        starts[rank + 1] = end


@inlined_in_place
def _ask(low: np.ndarray, high: np.ndarray, at: int, a: int, b: int) -> int:
    if at < len(low):
        low[at], high[at] = a, b
    return at + 1


@inlined_in_place
def _list_of(tokens: SortedTokens, rank: int, at: int, lows: np.ndarray, highs: np.ndarray) -> int:
    """The walk of `walk._code_token` to a rank, for what it asks alone."""
    low, high, depth = np.int64(0), np.int64(len(tokens.lengths)), np.int64(0)
    at = _ask(lows, highs, at, high, SUM)
    while True:
        ends = depth > 0 and tokens.lengths[low] == depth
        inner = low + 1 if ends else low
        if inner == high:
            break
        at = _ask(lows, highs, at, inner, high)
        if ends:
            at = _ask(lows, highs, at, inner, SUM)
            if rank == low:
                break
        value_low, value_high = np.int64(0), np.int64(256)
        for _ in range(8):
            value = (value_low + value_high) >> 1
            middle = first_from(tokens, inner, high, depth, value)
            if middle not in (inner, high):
                at = _ask(lows, highs, at, middle, SUM)
            if rank >= middle:
                value_low, inner = value, middle
            else:
                value_high, high = value, middle
        low, depth = inner, depth + 1
    return at


def answers_of(
    frequencies: np.ndarray, ranks: np.ndarray, questions: Questions, offsets: np.ndarray, size: int
) -> np.ndarray:
    """Frequencies int32 [k, n] → int64 [size], the answers to the questions of int32 ranks [k],
    those of the i-th token from offsets[i]; rank n has none. The definition; a GPU gives the
    same."""
    answers = np.empty(size, dtype=np.int64)
    blocks = -(-frequencies.shape[1] // BLOCK)
    sums, most = np.zeros(blocks + 1, dtype=np.int64), np.zeros(blocks, dtype=np.int32)
    _answer(frequencies, ranks, questions, offsets, sums, most, answers)
    return answers


@compiled_in_place
def _answer(
    frequencies: np.ndarray,
    ranks: np.ndarray,
    questions: Questions,
    offsets: np.ndarray,
    sums: np.ndarray,
    most: np.ndarray,
    answers: np.ndarray,
) -> None:
    for row in range(len(ranks)):
        rank = ranks[row]
        if rank == frequencies.shape[1]:
            continue
        own, first = frequencies[row], questions.starts[rank]
        sum_blocks(own, sums, most)
        for i in range(questions.starts[rank + 1] - first):
            low, high = np.int64(questions.low[first + i]), np.int64(questions.high[first + i])
            if high == SUM:
                answers[offsets[row] + i] = sum_before(own, sums, low)
            else:
                best = np.int64(likeliest(own, most, low, high))
                answers[offsets[row] + i] = (best << ANSWER_BITS) | np.int64(own[best])
