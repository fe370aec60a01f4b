"""All that the mixing of one frame knows: arrays of bounded size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmzip.mixing.history import History, new_history
from llmzip.mixing.level import (
    FULL,
    LEVELS,
    MATCH_STATES,
    Blank,
    Level,
    initial,
    limit_confidence,
)
from llmzip.mixing.slots import new_slots
from llmzip.mixing.tables import LOGIT_LIMIT, SQUASH

REFINED_KNOTS = 25  # logits at which refined probabilities are kept, 1 nat apart
BY_BYTE = 256 * 257  # contexts of the first refinement: the last byte, and the bits of this one
REFINED = BY_BYTE + MATCH_STATES * 3  # the second: the match's state and what it expects

_MOST_SLOT_BITS, _FEWEST_SLOT_BITS = 23, 12
_MOST_PLACE_BITS, _FEWEST_PLACE_BITS = 22, 10
_MOST_RING = 1 << 22


class Learned(NamedTuple):
    """What is learned of all streams together; C contexts, I inputs, K sets of weights."""

    slots: np.ndarray  # uint8, see slots.py
    # uint32 [C, 512]: probability (22 bits) of a one after a bit history, observations (10 bits);
    # of the bits, then of the flag
    maps: np.ndarray
    match: np.ndarray  # int32 [MATCH_STATES, 2]: that the match is right, 22 bits; of bits, flag
    weights: np.ndarray  # int32 [sum of K sizes, I], 16 fractional bits
    final: np.ndarray  # int32 [MATCH_STATES · STEPS, K]: weights of the second layer
    refined: np.ndarray  # uint16 [REFINED, REFINED_KNOTS]


State = tuple[History, Learned]


class Sizes(NamedTuple):
    """Of the arrays whose size depends on the frame, as powers of two."""

    slots: int
    ring: int
    places: int


def state_sizes(streams: int, length: int, prime: int = 0) -> Sizes:
    """For a frame of `length` bytes in S streams: at most 64 MiB of slots, 32 MiB of places, and
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


def new_state(
    streams: int,
    length: int,
    start: Blank | None = None,
    *,
    level: Level | None = None,
    prime: int = 0,
) -> State:
    """Before the first token of a frame, or of its prime of so many bytes: see `state_sizes`. The
    level is FULL if none is given."""
    sizes = state_sizes(streams, length, prime)
    start = start or initial(level or FULL)
    knots = np.minimum(np.arange(REFINED_KNOTS) * 256, 2 * LOGIT_LIMIT + 1)
    learned = Learned(
        new_slots(sizes.slots),
        start.maps.copy(),
        start.match.copy(),
        start.weights.copy(),
        start.final.copy(),
        np.tile(SQUASH[knots].astype(np.uint16), (REFINED, 1)),
    )
    return new_history(streams, 1 << sizes.ring, sizes.places), learned


def level_of(state: State) -> Level:
    """That of the state."""
    return next(level for level in LEVELS.values() if level.contexts == len(state[1].maps))


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
