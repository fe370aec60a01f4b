"""The contexts: what of the bytes and tokens so far the next byte may depend on, hashed."""

from __future__ import annotations

import numpy as np

from llmzip.compiled import inlined_in_place
from llmzip.mixing.history import (
    DIGITS,
    ELEMENT,
    ELEMENTS_ABOVE,
    FIELD,
    LAST8,
    LINE,
    LINE_ABOVE,
    PARITY,
    POSITION,
    SHAPE5,
    SHAPE12,
    TOKEN,
    TOKEN_BEFORE,
    WORD,
    WORD_BEFORE,
    WORD_TWO_BEFORE,
    History,
)

CONTEXTS, FAST_CONTEXTS = 18, 2
_U8, _U16, _U20 = (np.uint64(bits) for bits in (8, 16, 20))
_BYTE = np.uint64(255)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SIX_BYTES = np.uint64(0xFFFFFFFFFFFF)


@inlined_in_place
def hash_bytes(history: History, s: int, hashes: np.ndarray) -> None:
    """Contexts 0 to 13 of stream `s`, those that know nothing of tokens, into uint64 hashes."""
    counters, kept, ring = history.counters, history.hashes, history.ring
    size, mask = ring.shape[1], ring.shape[1] - 1
    position = counters[s, POSITION]
    last = kept[s, LAST8]
    c1 = last & _BYTE
    m = _MULTIPLIER
    word = kept[s, WORD]
    field = np.uint64(counters[s, FIELD])
    # orders 0, 1, 2 and 4
    hashes[0] = np.uint64(1)
    hashes[1] = c1 + np.uint64(2 << 8)
    hashes[2] = (last & np.uint64(0xFFFF)) + np.uint64(3 << 24)
    hashes[3] = (last & np.uint64(0xFFFFFFFF)) * m + np.uint64(4)
    # words
    hashes[4] = word * m + np.uint64(5)
    hashes[5] = (word * m + kept[s, WORD_BEFORE]) * m + np.uint64(6)
    hashes[6] = (word * m + field) * m + np.uint64(7)
    hashes[7] = (word * m + kept[s, WORD_TWO_BEFORE]) * m + np.uint64(8)
    # the bytes above, in the line before
    above = counters[s, LINE_ABOVE] + position - counters[s, LINE]
    a0, a1 = np.uint64(0), np.uint64(0)
    if counters[s, LINE_ABOVE] >= 0 and above + 1 < counters[s, LINE] and position - above < size:
        a0 = np.uint64(ring[s, above & mask])
        a1 = np.uint64(ring[s, (above + 1) & mask])
    column = np.uint64(min(position - counters[s, LINE], 255))
    hashes[8] = (a0 | a1 << _U8 | c1 << _U16) * m + np.uint64(9)
    hashes[9] = (column | a0 << _U8 | field << _U16) * m + np.uint64(10)
    # the same element of the line before, and the shape of the last elements
    digits = counters[s, DIGITS]
    element = counters[s, ELEMENT]
    b0, b1 = np.uint64(0), np.uint64(0)
    known, row = counters[s, ELEMENTS_ABOVE], counters[s, PARITY] ^ 1
    inside = digits > 0 and element > 0
    at = element - 1 if inside else element
    if at < known:
        place = np.int64(history.elements[s, row, at]) + (digits if inside else 0)
        following = place + 1
        if not inside:
            following = np.int64(history.elements[s, row, at + 1]) if at + 1 < known else -1
        if position - place < size:
            b0 = np.uint64(ring[s, place & mask])
        if following >= 0 and position - following < size:
            b1 = np.uint64(ring[s, following & mask])
    run = np.uint64(min(digits, 15))
    hashes[10] = (b0 | b1 << _U8 | run << _U16) * m + np.uint64(11)
    hashes[11] = (b0 | c1 << _U8 | np.uint64(min(element, 255)) << _U16) * m + np.uint64(12)
    if c1 >= np.uint64(128):  # letters of several bytes, which are no elements of a table
        hashes[11] = (last & _SIX_BYTES) * m + np.uint64(19)
    hashes[12] = (kept[s, SHAPE5] * m + run) * m + np.uint64(13)
    hashes[13] = (kept[s, SHAPE12] * m + run) * m + np.uint64(14)


@inlined_in_place
def hash_tokens(
    history: History, s: int, low: int, depth: int, byte: int, sureness: int, hashes: np.ndarray
) -> None:
    """Contexts 14 to 17: the language model's likeliest next byte and how sure it is; the last
    tokens and the node of the trie, which `low` and `depth` tell."""
    last, m = history.hashes[s, LAST8], _MULTIPLIER
    b = np.uint64(byte)
    node = np.uint64(low) | np.uint64(depth) << _U20
    token = np.uint64(history.counters[s, TOKEN])
    before = np.uint64(history.counters[s, TOKEN_BEFORE])
    hashes[14] = (b | np.uint64(sureness) << _U8 | (last & _BYTE) << _U16) * m + np.uint64(15)
    hashes[15] = (b | (last & np.uint64(0xFFFFFF)) << _U8) * m + np.uint64(16)
    hashes[16] = (token * m + node) * m + np.uint64(17)
    hashes[17] = ((before * m + token) * m + node) * m + np.uint64(18)


@inlined_in_place
def hash_few(history: History, s: int, hashes: np.ndarray) -> None:
    """The contexts of the fast level: orders 2 and 4."""
    last = history.hashes[s, LAST8]
    hashes[0] = (last & np.uint64(0xFFFF)) + np.uint64(3 << 24)
    hashes[1] = (last & np.uint64(0xFFFFFFFF)) * _MULTIPLIER + np.uint64(4)
