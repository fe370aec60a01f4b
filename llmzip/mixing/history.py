"""The bytes so far of each stream: words, lines, elements, and the longest match.

An element is one byte, or a run of digits; so a number is one element whatever its length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmzip.compiled import inlined_in_place

# columns of History.counters
POSITION, LINE, LINE_ABOVE, FIELD, ELEMENT, DIGITS, ELEMENTS_ABOVE, PARITY = range(8)
MATCH_STREAM, MATCH, MATCH_LENGTH, MISSES, TOKEN, TOKEN_BEFORE = range(8, 14)
COUNTERS = 14
# columns of History.hashes
LAST8, BEFORE8, WORD, WORD_BEFORE, WORD_TWO_BEFORE, SHAPE5, SHAPE12 = range(7)
HASHES = 7

ELEMENTS = 256  # elements of a line that are remembered
SHAPE = 12  # elements of the longest shape
MATCH_STARTS = (12, 5)  # bytes that must be equal for a match to begin
LONG_MATCH = 16  # bytes after which misses are forgotten and no better match is looked for
MOST_MISSES = 8  # without a long match in between; with one more a match ends
_LONGEST_CHECK = 32  # bytes that are compared when a match begins
_MARGIN = 64  # a match in a ring stays so far away from what is overwritten
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_WORD_MULTIPLIER = np.uint64(0x2F0B4C4745D9F3B5)
_U8, _U40, _U56 = np.uint64(8), np.uint64(40), np.uint64(56)
_FIVE_BYTES, _FOUR_BYTES = np.uint64(0xFFFFFFFFFF), np.uint64(0xFFFFFFFF)


class History(NamedTuple):
    """Of S streams, each with a ring of the last R bytes, R a power of two."""

    ring: np.ndarray  # uint8 [S, R]
    ends: np.ndarray  # uint8 [S, R]: 1 where a token ended after the byte
    counters: np.ndarray  # int64 [S, COUNTERS]
    hashes: np.ndarray  # uint64 [S, HASHES]
    elements: np.ndarray  # int32 [S, 2, ELEMENTS]: where those of this line and the one above begin
    shape: np.ndarray  # uint64 [S, SHAPE]: the last elements, the last first
    places: np.ndarray  # int32 [2, 2^B]: hash of the last 12 and 5 bytes → stream · R + ring index


def new_history(streams: int, ring: int, place_bits: int) -> History:
    """Before the first byte."""
    counters = np.zeros((streams, COUNTERS), dtype=np.int64)
    counters[:, [LINE_ABOVE, MATCH]] = -1
    return History(
        np.zeros((streams, ring), dtype=np.uint8),
        np.zeros((streams, ring), dtype=np.uint8),
        counters,
        np.zeros((streams, HASHES), dtype=np.uint64),
        np.zeros((streams, 2, ELEMENTS), dtype=np.int32),
        np.zeros((streams, SHAPE), dtype=np.uint64),
        np.full((2, 1 << place_bits), -1, dtype=np.int32),
    )


@inlined_in_place
def observe(history: History, s: int, byte: int, full: bool) -> None:
    """Stream `s` goes on with `byte`. Unless `full`, only the last bytes and matches are known."""
    counters, hashes = history.counters, history.hashes
    position = counters[s, POSITION]
    at = position & (history.ring.shape[1] - 1)
    history.ring[s, at], history.ends[s, at] = byte, 0
    counters[s, POSITION] = position + 1
    hashes[s, BEFORE8] = hashes[s, BEFORE8] << _U8 | hashes[s, LAST8] >> _U56
    hashes[s, LAST8] = hashes[s, LAST8] << _U8 | np.uint64(byte)
    if full:
        _observe_words(history, s, byte, position)
    _follow_match(history, s, byte)
    if counters[s, POSITION] >= MATCH_STARTS[1]:
        _find_match(history, s)


@inlined_in_place
def _observe_words(history: History, s: int, byte: int, position: int) -> None:
    """Words, lines and fields."""
    counters, hashes = history.counters, history.hashes
    if 97 <= byte <= 122 or 65 <= byte <= 90 or byte >= 128:
        hashes[s, WORD] = (hashes[s, WORD] + np.uint64(byte | 32)) * _WORD_MULTIPLIER
    elif hashes[s, WORD] != 0:
        hashes[s, WORD_TWO_BEFORE] = hashes[s, WORD_BEFORE]
        hashes[s, WORD_BEFORE], hashes[s, WORD] = hashes[s, WORD], np.uint64(0)
    _observe_element(history, s, byte, position)
    if byte == 10:
        counters[s, ELEMENTS_ABOVE], counters[s, ELEMENT] = counters[s, ELEMENT], 0
        counters[s, PARITY] ^= 1
        counters[s, LINE_ABOVE], counters[s, LINE] = counters[s, LINE], position + 1
        counters[s, FIELD] = 0
    elif byte == 44 or byte == 9 or byte == 124 or byte == 59:  # , tab | ;
        counters[s, FIELD] += 1


@inlined_in_place
def _observe_element(history: History, s: int, byte: int, position: int) -> None:
    counters, hashes = history.counters, history.hashes
    digit = 48 <= byte <= 57
    if digit and counters[s, DIGITS] > 0:
        counters[s, DIGITS] += 1
        return
    counters[s, DIGITS] = 1 if digit else 0
    element = counters[s, ELEMENT]
    if element < ELEMENTS:
        history.elements[s, counters[s, PARITY], element] = position
        counters[s, ELEMENT] = element + 1
    for i in range(SHAPE - 1, 0, -1):
        history.shape[s, i] = history.shape[s, i - 1]
    history.shape[s, 0] = np.uint64(1 if digit else byte + 2)
    shape = np.uint64(0)
    for i in range(SHAPE):
        shape = (shape + history.shape[s, i]) * _WORD_MULTIPLIER
        if i == 4:
            hashes[s, SHAPE5] = shape
    hashes[s, SHAPE12] = shape


@inlined_in_place
def _follow_match(history: History, s: int, byte: int) -> None:
    counters = history.counters
    mask = history.ring.shape[1] - 1
    match = counters[s, MATCH]
    if match < 0:
        return
    stream = counters[s, MATCH_STREAM]
    if history.ring[stream, match & mask] == byte:
        counters[s, MATCH_LENGTH] += 1
        if counters[s, MATCH_LENGTH] >= LONG_MATCH:
            counters[s, MISSES] = 0
    else:
        counters[s, MATCH_LENGTH] = 0
        counters[s, MISSES] += 1
    match += 1
    written = counters[stream, POSITION]
    if counters[s, MISSES] > MOST_MISSES or match >= written or written - match > mask - _MARGIN:
        match = -1
        counters[s, MATCH_LENGTH] = counters[s, MISSES] = 0
    counters[s, MATCH] = match


@inlined_in_place
def _find_match(history: History, s: int) -> None:
    """Look for a longer match than that of stream `s`, and remember where it is."""
    counters, ring, places = history.counters, history.ring, history.places
    size = ring.shape[1]
    mask = size - 1
    position = counters[s, POSITION]
    last8 = history.hashes[s, LAST8]
    by12 = last8 * _MULTIPLIER + (history.hashes[s, BEFORE8] & _FOUR_BYTES)
    for which in range(2):
        if position < MATCH_STARTS[which]:
            continue
        hashed = by12 if which == 0 else last8 & _FIVE_BYTES
        slot = np.int64((hashed * _MULTIPLIER) >> _U40) & (places.shape[1] - 1)
        place = places[which, slot]
        places[which, slot] = s * size + ((position - 1) & mask)
        if place < 0 or counters[s, MATCH_LENGTH] >= LONG_MATCH:
            continue
        stream = place // size
        written = counters[stream, POSITION]
        after = written - ((written - 1 - place) & mask)  # the byte that followed
        if after >= written or (
            after == counters[s, MATCH] and stream == counters[s, MATCH_STREAM]
        ):
            continue
        longest = min(_LONGEST_CHECK, after, position, size - (written - after))
        equal = 0
        while (
            equal < longest
            and ring[stream, (after - 1 - equal) & mask] == ring[s, (position - 1 - equal) & mask]
        ):
            equal += 1
        if equal >= MATCH_STARTS[1] and equal > counters[s, MATCH_LENGTH]:
            counters[s, MATCH], counters[s, MATCH_STREAM] = after, stream
            counters[s, MATCH_LENGTH], counters[s, MISSES] = equal, 0
