"""Ids seen so far → candidates for the next id of each stream, with the evidence for each.

Two kinds of memory, shared by all streams of a frame: hashed contexts, each with the last few ids
that followed it; and the longest earlier occurrence of the recent ids. Contexts are the last ids,
in some orders; the shape of the last ids, in which any number is like any other; and what stood
above, in the line before. Integers alone, one id after the other, so that encoder and decoder
remember the same.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled

DIGITS, LINE_END = 1, 2  # bits of an id's kind: it spells nothing but digits; it ends a line

ORDERS = (1, 2, 3, 4, 6)
CONTEXTS = len(ORDERS) + 2
ENTRIES = 8  # ids remembered after a context, the last first
CANDIDATES = 12
SOURCES = CONTEXTS + 1
STATES = 105  # of evidence from each source
MATCHES = (24, 8)  # ids that must be equal for a match to begin, the longer first

_SHAPE, _ABOVE, MATCH = len(ORDERS), len(ORDERS) + 1, CONTEXTS  # sources
_PAD = 32  # places before the first id of a stream, and the longest match looked at at first
_SMALLEST, _LARGEST = 12, 20  # bits of the tables' sizes
_ORDERS = np.array(ORDERS)
_MATCHES = np.array(MATCHES)
_SHORTEST = 6  # ids that must really be equal
_MISSES = 8  # in a row of hits that is never long; with one more a match is over
_SOUND = 16  # hits after which earlier misses are forgotten, and no other match is looked for
_SHAPES = 6  # elements of a shape
_NUMBER = 1  # the shape of a run of digits; others are id + 2
_LONGEST_RUN = 7
_COLUMNS = 256  # of a line that are remembered

# in which order candidates are thought of: (source, entry)
_SEQUENCE = np.array(
    [
        *[(7, 0), (5, 0), (6, 0), (4, 0), (3, 0), (2, 0), (1, 0), (3, 1), (2, 1), (5, 1), (6, 1)],
        *[(0, 0), (1, 1), (2, 2), (3, 2), (0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (5, 2), (6, 2)],
        *[(3, 3), (0, 3), (4, 1), (1, 4), (0, 4), (2, 4), (1, 5), (0, 5), (2, 5), (1, 6), (0, 6)],
    ]
)
# counts → classes
_COUNT_CLASS = np.array([0, 0, 1, 2, 3, 3, 3, *[4] * 6, *[5] * 243])
_OTHER_CLASS = np.array([0, 1, 2, 2, *[3] * 252])


def _multipliers() -> np.ndarray:
    """Odd numbers for hashing, by a multiplicative congruence."""
    state, values = 0x9E3779B97F4A7C15, []
    for _ in range(_PAD):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        values.append(state | 1)
    return np.array(values, dtype=np.uint64)


_MULTIPLIERS = _multipliers()


def kinds(spellings: list[bytes | None]) -> np.ndarray:
    """What each id spells → its kind, uint8 [V]."""
    found = np.zeros(len(spellings), dtype=np.uint8)
    for id, spelling in enumerate(spellings):
        if spelling:
            digits = spelling.isdigit()  # of bytes: ASCII alone
            found[id] = digits * DIGITS | (b"\n" in spelling) * LINE_END
    return found


class Recall:
    """What S streams of at most T ids have seen; they advance in lockstep."""

    candidates, sources = CANDIDATES, SOURCES  # K candidates, at most as many a step and stream

    def __init__(self, streams: int, steps: int, kinds: np.ndarray) -> None:
        """`kinds` uint8 [V], see `kinds`."""
        bits = (2 * streams * steps - 1).bit_length()
        bits = max(_SMALLEST, min(_LARGEST, bits))
        self._kinds = kinds
        self._history = np.full((streams, _PAD + steps), -1, dtype=np.int32)
        self._ids = np.full((CONTEXTS, 1 << bits, ENTRIES), -1, dtype=np.int32)
        self._counts = np.zeros((CONTEXTS, 1 << bits, ENTRIES), dtype=np.uint8)
        self._checks = np.zeros((CONTEXTS, 1 << bits), dtype=np.uint16)
        self._places = np.full((len(MATCHES), 1 << bits), -1, dtype=np.int32)
        self._slots = np.zeros((streams, SOURCES + 1), dtype=np.int64)
        self._slot_checks = np.zeros((streams, CONTEXTS), dtype=np.uint16)
        self._match = np.zeros((streams, 4), dtype=np.int64)  # live, place, hits, misses
        self._shapes = np.zeros((streams, _SHAPES), dtype=np.int64)  # the last first
        # column, run of digits, which of the two lines is the present one, length of the other
        self._where = np.zeros((streams, 4), dtype=np.int64)
        self._lines = np.zeros((streams, 2, _COLUMNS), dtype=np.int32)
        self._step = 0
        self._bits = bits

    def recall(self, candidates: np.ndarray, evidence: np.ndarray) -> None:
        """Fill in candidates int32 [S, K], -1 for none, and evidence uint8 [S, K, sources]."""
        _recall(
            self._history, self._step, self._bits, self._ids, self._counts, self._checks,
            self._places, self._slots, self._slot_checks, self._match, self._shapes, self._where,
            self._lines, candidates, evidence,
        )  # fmt: skip

    def recall_all(self, table: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
        """All ids int32 [T, S] at once → candidates [T, S, K] and evidence [T, S, K, sources]."""
        steps, streams = table.shape
        candidates = np.full((steps, streams, self.candidates), -1, dtype=np.int32)
        evidence = np.zeros((steps, streams, self.candidates, self.sources), dtype=np.uint8)
        for step in range(steps):
            self.recall(candidates[step], evidence[step])
            self.observe(table[step, : last if step == steps - 1 else streams])
        return candidates, evidence

    def observe(self, ids: np.ndarray) -> None:
        """The ids int32 [n] that came, of the first n streams; n < S in the last step alone."""
        _observe(
            self._history, self._step, self._ids, self._counts, self._checks, self._places,
            self._slots, self._slot_checks, self._match, self._shapes, self._where, self._lines,
            self._kinds, ids,
        )  # fmt: skip
        self._step += 1


@compiled
def _mixed(value: np.uint64) -> np.uint64:
    value = value * np.uint64(0x9E3779B97F4A7C15)
    value ^= value >> np.uint64(29)
    mixed: np.uint64 = value * np.uint64(0xBF58476D1CE4E5B9)
    return mixed


@compiled
def _look_up(
    s: int,
    source: int,
    value: np.uint64,
    shift: np.uint64,
    checks: np.ndarray,
    slots: np.ndarray,
    slot_checks: np.ndarray,
) -> bool:
    """Find the slot of a context of stream s; is it known?"""
    hashed = _mixed(value)
    slot = np.int64(hashed >> shift)
    check = np.uint16((hashed >> np.uint64(8)) & np.uint64(0xFFFF)) | np.uint16(1)
    slots[s, source], slot_checks[s, source] = slot, check
    known: bool = checks[source, slot] == check
    return known


@compiled
def _above(lines: np.ndarray, where: np.ndarray, column: int) -> np.uint64:
    """The id at a column of the line before, + 2; 1 beyond its end."""
    id = -1
    if column < where[3]:
        id = lines[1 - where[2], column]
    value: np.uint64 = np.uint64(id + 2)
    return value


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
    shapes: np.ndarray,
    where: np.ndarray,
    lines: np.ndarray,
    candidates: np.ndarray,
    evidence: np.ndarray,
) -> None:
    flat = history.reshape(-1)
    orders = len(_ORDERS)
    shift = np.uint64(64 - bits)
    found = np.zeros(CONTEXTS, dtype=np.bool_)
    end = _PAD + step  # the place of the id to come
    for s in range(len(history)):
        # hashes of the last 1, 2, … ids are sums of products
        value, order, long = np.uint64(0), 0, len(_MATCHES) - 1
        for back in range(_MATCHES[0]):
            value += np.uint64(history[s, end - 1 - back] + 2) * _MULTIPLIERS[back]
            if order < orders and _ORDERS[order] == back + 1:
                found[order] = _look_up(s, order, value, shift, checks, slots, slot_checks)
                order += 1
            if long >= 0 and _MATCHES[long] == back + 1:
                slots[s, CONTEXTS + long] = np.int64(_mixed(value) >> shift)
                long -= 1
        run = np.uint64(where[s, 1]) * _MULTIPLIERS[_SHAPES]
        value = run
        for back in range(_SHAPES):
            value += np.uint64(shapes[s, back]) * _MULTIPLIERS[back]
        found[_SHAPE] = _look_up(s, _SHAPE, value, shift, checks, slots, slot_checks)
        column = where[s, 0]
        value = run + np.uint64(history[s, end - 1] + 2) * _MULTIPLIERS[0]
        value += _above(lines[s], where[s], column) * _MULTIPLIERS[1]
        value += _above(lines[s], where[s], column + 1) * _MULTIPLIERS[2]
        found[_ABOVE] = _look_up(s, _ABOVE, value, shift, checks, slots, slot_checks)

        if not match[s, 0] or match[s, 2] < _SOUND:
            for i in range(len(_MATCHES)):
                place = np.int64(places[i, slots[s, CONTEXTS + i]])
                if place < 0:
                    continue
                if match[s, 0] and place == match[s, 1]:
                    break
                equal = 0
                while equal < _PAD and flat[place - 1 - equal] == history[s, end - 1 - equal]:
                    equal += 1
                if equal >= _SHORTEST and (not match[s, 0] or equal > match[s, 2]):
                    match[s, 0], match[s, 1], match[s, 2], match[s, 3] = 1, place, equal, 0
                    break
        predicted = flat[match[s, 1]] if match[s, 0] else -1

        count = 0
        for i in range(len(_SEQUENCE)):
            source, entry = _SEQUENCE[i]
            if source == MATCH:
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

        for source in range(CONTEXTS):
            if not found[source]:
                for j in range(count):
                    evidence[s, j, source] = 0
                continue
            here, seen = ids[source, slots[s, source]], counts[source, slots[s, source]]
            total, most, second = 0, 0, 0
            for entry in range(ENTRIES):
                n = np.int64(seen[entry])
                total += n
                if n > most:
                    most, second = n, most
                elif n > second:
                    second = n
            other = 1 + _OTHER_CLASS[min(total, 255)]
            for j in range(count):
                evidence[s, j, source] = other
            for entry in range(ENTRIES):
                id = here[entry]
                if id < 0:
                    break
                for j in range(count):
                    if candidates[s, j] == id:
                        n = np.int64(seen[entry])
                        rival = _OTHER_CLASS[second if n == most else most]
                        state = 8 + (min(entry, 3) * 6 + _COUNT_CLASS[n]) * 4 + rival
                        evidence[s, j, source] = state
        length, misses = match[s, 2], match[s, 3]
        size = 0
        if length:
            octave = 0
            while length >> (octave + 1):
                octave += 1
            half = length >> (octave - 1) & 1 if octave else 0
            size = min(1 + 2 * octave + half, 15)
        missed = min(misses, 3)
        for j in range(count):
            state = 0
            if predicted >= 0:
                if candidates[s, j] == predicted:
                    state = 16 + 16 * missed + size
                elif missed:
                    state = 81 + 8 * (missed - 1) + size // 2
                else:
                    state = 1 + size // 2
            evidence[s, j, MATCH] = state


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
    shapes: np.ndarray,
    where: np.ndarray,
    lines: np.ndarray,
    kinds: np.ndarray,
    came: np.ndarray,
) -> None:
    width = history.shape[1]
    flat = history.reshape(-1)
    end = _PAD + step
    for s in range(len(came)):
        id = came[s]
        for source in range(CONTEXTS):
            slot, check = slots[s, source], slot_checks[s, source]
            here, seen = ids[source, slot], counts[source, slot]
            if checks[source, slot] != check:
                checks[source, slot] = check
                for entry in range(ENTRIES):
                    here[entry], seen[entry] = -1, 0
            at = 0
            while at < ENTRIES - 1 and here[at] != id and here[at] >= 0:
                at += 1
            count = min(255, np.int64(seen[at]) + 1) if here[at] == id else 1
            for entry in range(at, 0, -1):
                here[entry], seen[entry] = here[entry - 1], seen[entry - 1]
            here[0], seen[0] = id, count
            for entry in range(1, ENTRIES):  # what did not come fades
                n = np.int64(seen[entry])
                if n > 3:
                    seen[entry] = n * 3 >> 2
        for i in range(len(_MATCHES)):
            places[i, slots[s, CONTEXTS + i]] = s * width + end
        if match[s, 0]:
            if flat[match[s, 1]] == id:
                match[s, 2] += 1
                if match[s, 2] >= _SOUND:
                    match[s, 3] = 0
            else:
                match[s, 2] = 0
                match[s, 3] += 1
                if match[s, 3] > _MISSES:
                    match[s, 0], match[s, 3] = 0, 0
            match[s, 1] += 1
        _move(shapes[s], where[s], lines[s], id, kinds[id])
    for s in range(len(came)):
        history[s, end] = came[s]
    for s in range(len(came)):  # no stream has come as far as to predict from there
        if match[s, 0] and match[s, 1] % width > end:
            match[s, 0], match[s, 2], match[s, 3] = 0, 0, 0


@compiled
def _move(shapes: np.ndarray, where: np.ndarray, lines: np.ndarray, id: int, kind: int) -> None:
    """Where a stream stands in its line and what its last ids look like, after one more."""
    column, present = where[0], where[2]
    if column < _COLUMNS:
        lines[present, column] = id
    digits = kind & DIGITS
    if not digits or where[1] == 0:
        for back in range(_SHAPES - 1, 0, -1):
            shapes[back] = shapes[back - 1]
        shapes[0] = _NUMBER if digits else id + 2
        where[0] += 1
    where[1] = min(where[1] + 1, _LONGEST_RUN) if digits else 0
    if kind & LINE_END:
        where[0], where[2], where[3] = 0, 1 - present, min(column + 1, _COLUMNS)
