"""How much is mixed, and the part of the state that is trained offline."""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmzip.mixing.bit_history import COUNTS
from llmzip.mixing.contexts import CONTEXTS, FAST_CONTEXTS

# Sets of weights: by the state of the match; by the language model's confidence; by the bits of
# this byte so far; by the decision's place in the token; by the last byte.
MATCH_STATES = 129  # none, or 32 classes of length after 0 to 3 misses
CONFIDENCES = 96
SET_SIZES = (MATCH_STATES, CONFIDENCES, 256, 36, 256)
SET_STARTS = tuple(sum(SET_SIZES[:i]) for i in range(len(SET_SIZES)))
STEPS = 9  # the flag, and the bits of a byte

_CONFIDENCE = 60  # observations that the initial probabilities count for


class Level(NamedTuple):
    """How many contexts and sets of weights there are."""

    contexts: int
    sets: int  # the first of SET_SIZES
    path: Path  # of the state that excerpts of a training corpus leave behind

    @property
    def inputs(self) -> int:
        """Of the mixer: two a context; two of the match, the language model's, a constant."""
        return 2 * self.contexts + 4


_FOLDER = Path(__file__).parent
FULL = Level(CONTEXTS, len(SET_SIZES), _FOLDER / "initial.xz")
FAST = Level(FAST_CONTEXTS, 3, _FOLDER / "initial-fast.xz")
LEVELS = {"full": FULL, "fast": FAST}


class Blank(NamedTuple):
    """The part of the state that is trained offline."""

    maps: np.ndarray
    match: np.ndarray
    weights: np.ndarray
    final: np.ndarray


def blank(level: Level = FULL) -> Blank:
    """Before anything was learned, offline or of a text."""
    odds = (COUNTS[:, 1] * 5 + 2, COUNTS.sum(1) * 5 + 4)
    maps = ((odds[0] << 22) // odds[1] << 10).astype(np.uint32)
    weights = np.zeros((sum(SET_SIZES[: level.sets]), level.inputs), dtype=np.int32)
    weights[:, : level.contexts], weights[:, -4], weights[:, -2] = 9830, 13107, 39322
    return Blank(
        np.tile(maps, (level.contexts, 2)),
        np.full((MATCH_STATES, 2), 3774873, dtype=np.int32),
        weights,
        np.full((MATCH_STATES * STEPS, level.sets), 65536 // level.sets, dtype=np.int32),
    )


@cache
def initial(level: Level = FULL) -> Blank:
    """The state that excerpts of a training corpus leave behind (scripts/train.py mixing)."""
    data = lzma.decompress(level.path.read_bytes())
    arrays, start = [], 0
    for like in blank(level):
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


def save_initial(state: Blank, path: Path) -> None:
    """Write a state as `initial` reads it, in 16 bits a value."""
    maps, match, weights, final = state
    short = [maps >> 16, match >> 6, (weights + 8) >> 4, (final + 8) >> 4]
    clipped = [
        part.astype(np.uint16).view(np.int16) if i < 2 else part.clip(-32768, 32767)
        for i, part in enumerate(short)
    ]
    data = b"".join(part.astype("<i2").tobytes() for part in clipped)
    path.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
