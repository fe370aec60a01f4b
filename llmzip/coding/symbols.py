"""A token is two symbols, its row and its column: one step for encoder, decoder and cost.

`code_step` drives all directions; they differ only in the object that codes. Knows nothing of
models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmzip.errors import CorruptArchive

if TYPE_CHECKING:
    from llmzip.coding.frame_codec import Memory
    from llmzip.range_coder import Decoder, Encoder

_FEW = 4096  # symbols a word: no text is so plain that a model frame reaches it


class Turn(Protocol):
    """Puts the next known symbols, or gets the next unknown ones."""

    def code(self, weights: np.ndarray) -> np.ndarray:
        """float64 [n, K] → int32 [n]"""


class Known(Turn, Protocol):
    """Knows the next symbols."""

    known: list[np.ndarray]  # the first last


class Put:
    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.known: list[np.ndarray] = []

    def code(self, weights: np.ndarray) -> np.ndarray:
        symbols = self.known.pop()
        self._encoder.put(symbols, weights)
        return symbols


class Weigh:
    """Codes nothing: notes what it would cost."""

    def __init__(self) -> None:
        self.known: list[np.ndarray] = []
        self.bits: list[np.ndarray] = []  # of every call, float64 [n]
        self.total = 0.0

    def code(self, weights: np.ndarray) -> np.ndarray:
        symbols = self.known.pop()
        bits = np.log2(weights.sum(1) / weights[np.arange(len(symbols)), symbols])
        self.bits.append(bits)
        self.total += float(bits.sum())
        return symbols


class Get:
    """Of few words for many symbols, damage shows when these have said more than words can: it
    would take hours to come to the end, and to the check of the content."""

    def __init__(self, decoder: Decoder, payload_length: int, symbols: int) -> None:
        self._decoder = decoder
        words = -(-payload_length // 4)
        # 32 bits a word, and a quarter more, as the coder rounds rare symbols to 2^-24
        self._left = 40.0 * (words + 4) if symbols > _FEW * (words + 4) else math.inf

    def code(self, weights: np.ndarray) -> np.ndarray:
        symbols = self._decoder.get(weights)
        if self._left < math.inf:
            chosen = weights[np.arange(len(symbols)), symbols] / weights.sum(1)
            self._left += float(np.log2(np.maximum(chosen, 2.0**-24)).sum())
            if self._left < 0:
                raise CorruptArchive("the coded words are too few for what they say")
        return symbols


def code_step(
    turn: Turn,
    rows: np.ndarray,
    columns_of: Callable[[np.ndarray], np.ndarray],
    memory: Memory | None,
    known: np.ndarray,
    columns_a_row: int,
) -> np.ndarray:
    """One id of each stream, int32 [n]: its row by weights [n, R] (overwritten), then its column
    by weights [n, C] given the row. `known` are the weights of the memory's candidates [n, K]."""
    if memory is None:
        row = turn.code(rows)
        plain: np.ndarray = row * columns_a_row + turn.code(columns_of(row))
        return plain
    memory.weigh(rows, known)
    row = turn.code(rows)
    columns = columns_of(row)
    memory.weigh_columns(columns, row)
    ids: np.ndarray = row * columns_a_row + turn.code(columns)
    return ids
