"""All that the mixing of one frame knows: arrays of bounded size."""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmzip.mixing.bit_history import COUNTS
from llmzip.mixing.contexts import CONTEXTS, SLOT_BYTES
from llmzip.mixing.history import History, new_history
from llmzip.mixing.tables import LOGIT_LIMIT, SQUASH

INPUTS = 40  # two a context; two of the match, the language model's, a constant
MATCH_INPUT, MODEL_INPUT, CONSTANT_INPUT = 2 * CONTEXTS, 2 * CONTEXTS + 2, 2 * CONTEXTS + 3

# Sets of weights: by the state of the match; by the language model's confidence; by the bits of
# this byte so far; by the decision's place in the token; by the last byte.
SETS = 5
MATCH_STATES = 129  # none, or 32 classes of length after 0 to 3 misses
CONFIDENCES = 96
SET_SIZES = (MATCH_STATES, CONFIDENCES, 256, 36, 256)
SET_STARTS = tuple(sum(SET_SIZES[:i]) for i in range(SETS))
STEPS = 9  # the flag, and the bits of a byte

REFINED_KNOTS = 25  # logits at which refined probabilities are kept, 1 nat apart
BY_BYTE = 256 * 257  # contexts of the first refinement: the last byte, and the bits of this one
REFINED = BY_BYTE + MATCH_STATES * 3  # the second: the match's state and what it expects

_MOST_SLOT_BITS, _FEWEST_SLOT_BITS = 22, 12
_MOST_PLACE_BITS, _FEWEST_PLACE_BITS = 20, 10
_MOST_RING = 1 << 22
_CONFIDENCE = 60  # observations that the initial probabilities count for
INITIAL = Path(__file__).with_name("initial.xz")


class Learned(NamedTuple):
    """What is learned of all streams together."""

    slots: np.ndarray  # uint8 [2^B · 8], see contexts.py
    # uint32 [CONTEXTS, 512]: probability (22 bits) of a one after a bit history, observations (10
    # bits); of the bits, then of the flag
    maps: np.ndarray
    match: np.ndarray  # int32 [MATCH_STATES, 2]: that the match is right, 22 bits; of bits, flag
    weights: np.ndarray  # int32 [sum(SET_SIZES), INPUTS], 16 fractional bits
    final: np.ndarray  # int32 [MATCH_STATES · STEPS, SETS]: weights of the second layer
    refined: np.ndarray  # uint16 [REFINED, REFINED_KNOTS]


class Blank(NamedTuple):
    """The part of the state that is trained offline."""

    maps: np.ndarray
    match: np.ndarray
    weights: np.ndarray
    final: np.ndarray


def blank() -> Blank:
    """Before anything was learned, offline or of a text."""
    odds = (COUNTS[:, 1] * 5 + 2, COUNTS.sum(1) * 5 + 4)
    maps = ((odds[0] << 22) // odds[1] << 10).astype(np.uint32)
    weights = np.zeros((sum(SET_SIZES), INPUTS), dtype=np.int32)
    weights[:, :CONTEXTS], weights[:, MATCH_INPUT], weights[:, MODEL_INPUT] = 9830, 13107, 39322
    return Blank(
        np.tile(maps, (CONTEXTS, 2)),
        np.full((MATCH_STATES, 2), 3774873, dtype=np.int32),
        weights,
        np.full((MATCH_STATES * STEPS, SETS), 65536 // SETS, dtype=np.int32),
    )


@cache
def initial(path: Path = INITIAL) -> Blank:
    """The state that excerpts of a training corpus leave behind (scripts/train.py mixing)."""
    data = lzma.decompress(path.read_bytes())
    arrays, start = [], 0
    for like in blank():
        arrays.append(np.frombuffer(data, "<i2", like.size, start).reshape(like.shape))
        start += 2 * like.size
    maps, match, weights, final = arrays
    return Blank(
        (maps.astype(np.uint16).astype(np.uint32) << 16) | np.uint32(_CONFIDENCE),
        match.astype(np.uint16).astype(np.int32) << 6,
        weights.astype(np.int32) << 4,
        final.astype(np.int32) << 4,
    )


def limit_confidence(state: Blank) -> Blank:
    """Probabilities that count for so few observations that they still adapt to a text."""
    maps = state.maps
    seen = np.minimum(maps & np.uint32(1023), np.uint32(_CONFIDENCE))
    return state._replace(maps=maps & ~np.uint32(1023) | seen)


def save_initial(state: Blank, path: Path = INITIAL) -> None:
    """Write a state as `initial` reads it, in 16 bits a value."""
    maps, match, weights, final = state
    short = [maps >> 16, match >> 6, (weights + 8) >> 4, (final + 8) >> 4]
    clipped = [
        part.astype(np.uint16).view(np.int16) if i < 2 else part.clip(-32768, 32767)
        for i, part in enumerate(short)
    ]
    data = b"".join(part.astype("<i2").tobytes() for part in clipped)
    path.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


State = tuple[History, Learned]


class Sizes(NamedTuple):
    """Of the arrays whose size depends on the frame, as powers of two."""

    slots: int
    ring: int
    places: int


def state_sizes(streams: int, length: int, prime: int = 0) -> Sizes:
    """For a frame of `length` bytes in S streams: at most 32 MiB of slots, 8 MiB of places, and
    rings of twice the length, at most 8 MiB together.

    Short frames after a long `prime` have the same sizes, so that they can share a state; a ring
    has room for both.
    """
    bits = max(length, prime).bit_length()
    ring = bits + 1 if prime else bits
    return Sizes(
        slots=min(max(bits + 5, _FEWEST_SLOT_BITS), _MOST_SLOT_BITS),
        ring=min(max(ring, 7), (_MOST_RING // streams).bit_length() - 1),
        places=min(max(bits + 1, _FEWEST_PLACE_BITS), _MOST_PLACE_BITS),
    )


def new_state(streams: int, length: int, start: Blank | None = None, *, prime: int = 0) -> State:
    """Before the first token of a frame, or of its prime of so many bytes: see `state_sizes`."""
    sizes = state_sizes(streams, length, prime)
    start = start or initial()
    knots = np.minimum(np.arange(REFINED_KNOTS) * 256, 2 * LOGIT_LIMIT + 1)
    learned = Learned(
        np.zeros(SLOT_BYTES << sizes.slots, np.uint8),
        start.maps.copy(),
        start.match.copy(),
        start.weights.copy(),
        start.final.copy(),
        np.tile(SQUASH[knots].astype(np.uint16), (REFINED, 1)),
    )
    return new_history(streams, 1 << sizes.ring, sizes.places), learned


def start_of(state: State) -> Blank:
    """The part that can be another frame's start."""
    return limit_confidence(Blank(*(getattr(state[1], name).copy() for name in Blank._fields)))


def copy_state(state: State) -> State:
    """All arrays anew."""
    history, learned = state
    return History(*(a.copy() for a in history)), Learned(*(a.copy() for a in learned))


def spread_history(history: History) -> None:
    """Give all streams the history of the first; they share the places anyway."""
    for array in (history.ring, history.ends, history.counters, history.hashes,
                  history.elements, history.shape):  # fmt: skip
        array[1:] = array[0]
