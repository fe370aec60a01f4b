"""`recall` as it was in memory version 1: no shapes, nothing above, and matches end with a miss.

Archives of that version are read with it, none is written; it never changes.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled
from llmzip.memory.recall import (
    _COUNT_CLASS,
    _MATCHES,
    _MULTIPLIERS,
    _OTHER_CLASS,
    _PAD,
    _SHORTEST,
    MATCHES,
    Recaller,
    _mixed,
)

ORDERS = (1, 2, 3, 4, 5, 7)
ENTRIES = 4  # ids remembered after a context, the last first
CANDIDATES = 16
SOURCES = len(ORDERS) + 1  # the last one is the match

_SMALLEST, _LARGEST = 12, 20  # bits of the tables' sizes
_ORDERS = np.array(ORDERS)

# in which order candidates are thought of: (source, entry)
_SEQUENCE = np.array(
    [
        *[(6, 0), (5, 0), (4, 0), (3, 0), (2, 0), (4, 1), (3, 1), (1, 0), (2, 1), (0, 0), (1, 1)],
        *[(2, 2), (3, 2), (4, 2), (0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (3, 3), (0, 3), (4, 3)],
        (5, 1),
    ]
)


class Recall(Recaller):
    """Of memory version 1."""

    candidates, sources = CANDIDATES, SOURCES

    def __init__(self, streams: int, steps: int) -> None:
        bits = (2 * streams * steps - 1).bit_length()
        bits = max(_SMALLEST, min(_LARGEST, bits))
        self._history = np.full((streams, _PAD + steps), -1, dtype=np.int32)
        self._ids = np.full((len(ORDERS), 1 << bits, ENTRIES), -1, dtype=np.int32)
        self._counts = np.zeros((len(ORDERS), 1 << bits, ENTRIES), dtype=np.uint8)
        self._checks = np.zeros((len(ORDERS), 1 << bits), dtype=np.uint16)
        self._places = np.full((len(MATCHES), 1 << bits), -1, dtype=np.int32)
        self._slots = np.zeros((streams, SOURCES + 1), dtype=np.int64)
        self._slot_checks = np.zeros((streams, len(ORDERS)), dtype=np.uint16)
        self._match = np.zeros((streams, 2), dtype=np.int64)  # place, length
        self._step = 0
        self._bits = bits

    def recall(self, candidates: np.ndarray, evidence: np.ndarray) -> None:
        _recall(
            self._history, self._step, self._bits, self._ids, self._counts, self._checks,
            self._places, self._slots, self._slot_checks, self._match, candidates, evidence,
        )  # fmt: skip

    def observe(self, ids: np.ndarray) -> None:
        _observe(
            self._history, self._step, self._ids, self._counts, self._checks, self._places,
            self._slots, self._slot_checks, self._match, ids,
        )  # fmt: skip
        self._step += 1


@compiled
def _recall(
    history: np.ndarray,
    step: int,
    bits: int,
    ids: np.ndarray,
    counts: np.ndarray,
    checks: np.ndarray,
    places: np.ndarray,
    slots: np.ndarray,
    slot_checks: np.ndarray,
    match: np.ndarray,
    candidates: np.ndarray,
    evidence: np.ndarray,
) -> None:
    streams = len(history)
    flat = history.reshape(-1)
    orders = len(_ORDERS)
    shift = np.uint64(64 - bits)
    found = np.zeros(orders, dtype=np.bool_)
    for s in range(streams):
        end = _PAD + step  # the place of the id to come
        # hashes of the last 1, 2, … ids are sums of products
        value, order, long = np.uint64(0), 0, len(_MATCHES) - 1
        for back in range(_MATCHES[0]):
            value += np.uint64(history[s, end - 1 - back] + 2) * _MULTIPLIERS[back]
            if order < orders and _ORDERS[order] == back + 1:
                hashed = _mixed(value)
                slot = np.int64(hashed >> shift)
                check = np.uint16((hashed >> np.uint64(8)) & np.uint64(0xFFFF)) | np.uint16(1)
                slots[s, order], slot_checks[s, order] = slot, check
                found[order] = checks[order, slot] == check
                order += 1
            if long >= 0 and _MATCHES[long] == back + 1:
                slots[s, orders + long] = np.int64(_mixed(value) >> shift)
                long -= 1
        if match[s, 1] == 0:
            for i in range(len(_MATCHES)):
                place = np.int64(places[i, slots[s, orders + i]])
                if place < 0:
                    continue
                equal = 0
                while equal < _PAD and flat[place - 1 - equal] == history[s, end - 1 - equal]:
                    equal += 1
                if equal >= _SHORTEST:
                    match[s, 0], match[s, 1] = place, equal
                    break
        length = match[s, 1]
        predicted = flat[match[s, 0]] if length else -1
        count = 0
        for i in range(len(_SEQUENCE)):
            source, entry = _SEQUENCE[i]
            if source == orders:
                id = predicted
            elif found[source]:
                id = ids[source, slots[s, source], entry]
            else:
                continue
            known = id < 0
            for j in range(count):
                known |= candidates[s, j] == id
            if known:
                continue
            candidates[s, count] = id
            count += 1
            if count == CANDIDATES:
                break
        for j in range(count, CANDIDATES):
            candidates[s, j] = -1
        for j in range(count):
            id = candidates[s, j]
            for source in range(orders):
                state = 0
                if found[source]:
                    slot = slots[s, source]
                    at, most, total = -1, 0, 0
                    for entry in range(ENTRIES):
                        n = np.int64(counts[source, slot, entry])
                        total += n
                        if ids[source, slot, entry] == id:
                            at = entry
                        elif n > most:
                            most = n
                    if at < 0:
                        state = 1 + _OTHER_CLASS[min(total, 255)]
                    else:
                        n = np.int64(counts[source, slot, at])
                        state = 8 + (at * 6 + _COUNT_CLASS[n]) * 4 + _OTHER_CLASS[most]
                evidence[s, j, source] = state
            state = 0
            if length:
                octave = 0
                while length >> (octave + 1):
                    octave += 1
                half = length >> (octave - 1) & 1 if octave else 0
                size = min(1 + 2 * octave + half, 15)
                state = 16 + size if id == predicted else 1 + size // 2
            evidence[s, j, orders] = state


@compiled
def _observe(
    history: np.ndarray,
    step: int,
    ids: np.ndarray,
    counts: np.ndarray,
    checks: np.ndarray,
    places: np.ndarray,
    slots: np.ndarray,
    slot_checks: np.ndarray,
    match: np.ndarray,
    came: np.ndarray,
) -> None:
    width = history.shape[1]
    flat = history.reshape(-1)
    orders = len(_ORDERS)
    end = _PAD + step
    for s in range(len(came)):
        id = came[s]
        for order in range(orders):
            slot, check = slots[s, order], slot_checks[s, order]
            if checks[order, slot] != check:
                checks[order, slot] = check
                for entry in range(ENTRIES):
                    ids[order, slot, entry], counts[order, slot, entry] = -1, 0
            at = 0
            while at < ENTRIES - 1 and ids[order, slot, at] != id:
                at += 1
            if ids[order, slot, at] == id:
                count = min(255, np.int64(counts[order, slot, at]) + 1)
            else:
                count = 1
            for entry in range(at, 0, -1):
                ids[order, slot, entry] = ids[order, slot, entry - 1]
                counts[order, slot, entry] = counts[order, slot, entry - 1]
            ids[order, slot, 0], counts[order, slot, 0] = id, count
            for entry in range(1, ENTRIES):  # what did not come fades
                n = np.int64(counts[order, slot, entry])
                if n > 3:
                    counts[order, slot, entry] = n * 3 >> 2
        for i in range(len(_MATCHES)):
            places[i, slots[s, orders + i]] = s * width + end
        if match[s, 1]:
            if flat[match[s, 0]] == id:
                match[s, 0] += 1
                match[s, 1] += 1
            else:
                match[s, 1] = 0
    for s in range(len(came)):
        history[s, end] = came[s]
    for s in range(len(came)):  # no stream has come as far as to predict from there
        if match[s, 1] and match[s, 0] % width > end:
            match[s, 1] = 0
