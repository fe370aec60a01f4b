"""Bit histories: what a context has seen of one decision, as a state of one byte.

A state holds bounded counts of zeros and ones and the last two bits; a rare outcome makes the
opposite count shrink, so that what came lately counts more (as in paq8 and zpaq, by Mahoney).
"""

from __future__ import annotations

import numpy as np

_COUNTS = [*range(13), 14, 16, 18, 20, 24, 28, 32, 40]
_MOST = {0: 40, 1: 30, 2: 14, 3: 10, 4: 7, 5: 6}  # largest count beside the smaller one
_State = tuple[int, int, int]  # zeros, ones, the last two bits


def _next_state(state: _State, bit: int) -> _State:
    counts = list(state[:2])
    other = counts[1 - bit]
    if other > 2:
        other = (other + 1) >> 1 if other < 6 else max(3, other * 2 // 5 + 1) if other < 20 else 6
    up = min(_COUNTS.index(counts[bit]) + 1, len(_COUNTS) - 1)
    counts[bit] = _COUNTS[up]
    counts[1 - bit] = max(count for count in _COUNTS if count <= other)
    while max(counts) > _MOST.get(min(counts), 0):
        larger = bit if counts[bit] > 5 or counts[bit] >= counts[1 - bit] else 1 - bit
        counts[larger] = _COUNTS[_COUNTS.index(counts[larger]) - 1]
    zeros, ones = counts
    last = (state[2] * 2 + bit) & 3
    if not zeros or not ones:
        last = 3 if ones else 0
    elif zeros + ones > 14 and max(counts) > 14:
        last = 3 * (last & 1)
    return zeros, ones, last


def _machine() -> tuple[np.ndarray, np.ndarray]:
    """Next states uint8 [256, 2], and counts int64 [256, 2]; states that are none stay 0."""
    start = (0, 0, 0)
    seen, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        for bit in (0, 1):
            after = _next_state(state, bit)
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    # by number of observations: a slot whose first state is low may be replaced
    states = sorted(seen, key=lambda state: (state[0] + state[1], state))
    number = {state: i for i, state in enumerate(states)}
    following = np.zeros((256, 2), dtype=np.uint8)
    counts = np.zeros((256, 2), dtype=np.int64)
    for state, i in number.items():
        following[i] = [number[_next_state(state, bit)] for bit in (0, 1)]
        counts[i] = state[:2]
    return following, counts


NEXT_STATE, COUNTS = _machine()
# int32 [256]: how far a state's probability is scaled down as an input: less if it saw one kind
# of bit alone
SCALE_SHIFT = np.where(COUNTS.min(1) == 0, 2, 3).astype(np.int32)
