"""One decision from the words of constriction's range coder, in compiled code.

The words are those that constriction.stream.queue.RangeEncoder makes of Bernoulli models; tests
hold the two equal. A coder is uint64 [4]: lower, range, point, number of the next word.
Algorithm: Martin, "Range encoding: an algorithm for removing redundancy from a digitised message",
1979, in the form of constriction's queue.RangeDecoder (32-bit words, 64-bit state, 24 bits of
precision).
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import inlined_in_place

LOWER, RANGE, POINT, NEXT = range(4)
_U24, _U32 = np.uint64(24), np.uint64(32)
_SMALLEST = np.uint64(1 << 32)
_SLACK = 3  # a payload may make a decoder ask for one word more than this beyond its own: zeros


def new_coder(words: np.ndarray) -> np.ndarray:
    """A coder before the first decision; words uint32 [n]."""
    first = [int(word) for word in words[:2]] + [0] * (2 - min(2, len(words)))
    return np.array([0, 2**64 - 1, first[0] << 32 | first[1], 2], dtype=np.uint64)


@inlined_in_place
def decode_bit(coder: np.ndarray, words: np.ndarray, probability: int) -> int:
    """The next decision, whose probability of a one is `probability` / 2^16; -1 where the words
    make no sense. A one has what constriction leaves it of 2^24 after the zero."""
    zero = np.uint64(1 + (((65536 - probability) * ((1 << 24) - 2)) >> 16))
    scale = coder[RANGE] >> _U24
    offset = coder[POINT] - coder[LOWER]
    edge = scale * zero
    if offset < edge:
        bit = 0
        coder[RANGE] = edge
    else:
        if offset >= scale << _U24:
            return -1
        bit = 1
        coder[LOWER] += edge
        coder[RANGE] = scale * (np.uint64(1 << 24) - zero)
    if coder[RANGE] < _SMALLEST:
        at = coder[NEXT]
        if at > np.uint64(len(words) + _SLACK):
            return -1
        word = np.uint64(words[np.int64(at)]) if at < np.uint64(len(words)) else np.uint64(0)
        coder[LOWER] <<= _U32
        coder[RANGE] <<= _U32
        coder[POINT] = coder[POINT] << _U32 | word
        coder[NEXT] = at + np.uint64(1)
    return bit
