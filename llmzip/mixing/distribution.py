"""The language model's distribution of the next token: sums of frequencies over ranges of ranks.

Frequencies are int32 [n], at least 1, in the order of ranks. They are summed in blocks of 128; the
sum before a rank is put together where it is asked for.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import inlined_in_place
from llmzip.mixing.tables import LOG2, LOGIT_LIMIT

_BLOCK_BITS = 7
BLOCK = 1 << _BLOCK_BITS
_LN2 = 2839  # ln 2 · 2^12: from logarithms in 1/4096 to logits, 16 bits down


@inlined_in_place
def sum_blocks(frequencies: np.ndarray, sums: np.ndarray, most: np.ndarray) -> None:
    """Fills sums int64 [blocks + 1], of all before each block, and the largest of each block,
    most int32 [blocks]."""
    total, whole = np.int64(0), len(frequencies) >> _BLOCK_BITS
    for block in range(len(most)):
        # the length of a whole block is known to the compiler
        part = frequencies[block << _BLOCK_BITS : (block + 1) << _BLOCK_BITS]
        subtotal, most[block] = (
            _sum_and_most(part, BLOCK) if block < whole else _sum_and_most(part, len(part))
        )
        sums[block] = total
        total += subtotal
    sums[len(most)] = total


@inlined_in_place
def _sum_and_most(part: np.ndarray, size: int) -> tuple[int, int]:
    low, high, largest = np.uint32(0), np.uint32(0), np.uint32(0)
    for i in range(size):
        # in halves, which 32 bits hold, so that the loop is vectorised
        frequency = np.uint32(part[i])
        low = np.uint32(low + np.uint32(frequency & np.uint32(65535)))
        high = np.uint32(high + np.uint32(frequency >> np.uint32(16)))
        largest = max(largest, frequency)
    return (np.int64(high) << 16) + np.int64(low), np.int32(largest)


@inlined_in_place
def sum_before(frequencies: np.ndarray, sums: np.ndarray, rank: int) -> int:
    """The sum of the frequencies of all ranks below `rank`."""
    total = np.int64(0)
    for i in range((rank >> _BLOCK_BITS) << _BLOCK_BITS, rank):
        total += frequencies[i]
    return sums[rank >> _BLOCK_BITS] + total


@inlined_in_place
def likeliest(frequencies: np.ndarray, most: np.ndarray, low: int, high: int) -> int:
    """The first rank of low … high - 1 with the largest frequency there."""
    best, found = np.int32(0), low
    rank = low
    while rank < high:
        block = rank >> _BLOCK_BITS
        end = min(high, (block + 1) << _BLOCK_BITS)
        if most[block] > best:
            for i in range(rank, end):
                if frequencies[i] > best:
                    best, found = frequencies[i], i
        rank = end
    return found


@inlined_in_place
def log2(value: int) -> int:
    """2^12 · log2 of a positive integer, rounded down in its last bits."""
    octave = np.int64(12)
    while value >= 1 << 28:
        value >>= 16
        octave += 16
    while value >= 1 << 13:
        value >>= 1
        octave += 1
    while value < 1 << 12:
        value <<= 1
        octave -= 1
    return (octave << 12) + LOG2[value - 4096]


@inlined_in_place
def logit(one: int, zero: int) -> int:
    """ln(one / zero) of two positive integers, in 1/256, within the limit."""
    exact = ((log2(one) - log2(zero)) * _LN2) >> 16
    return min(max(exact, -LOGIT_LIMIT), LOGIT_LIMIT)
