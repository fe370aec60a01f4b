"""Symbols + weights ↔ words. The only file that imports constriction.

Range coding with categorical models whose weights are float64 arrays of integers ≥ 1, a row
each, two columns at least. Knows nothing of models and of frames.
"""

from __future__ import annotations

from typing import NoReturn

import constriction
import numpy as np

from llmzip.errors import CorruptArchive

# Without perfect=… constriction prints a warning to stdout, where the data may be going.
_FAMILY = constriction.stream.model.Categorical(perfect=False)
WORD_BYTES = 4


class Encoder:
    """Collects symbols into words."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """symbols int32 [n], each below K; weights float64 [n, K], integers ≥ 1, K ≥ 2."""
        self._encoder.encode(symbols, _FAMILY, weights)

    def put_alike(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """symbols int32 [n], each below K, all by the same weights float64 [K]."""
        self._encoder.encode(symbols, _alike(weights))

    def size(self) -> int:
        """Bytes of the words so far."""
        return WORD_BYTES * int(self._encoder.num_words())

    def words(self) -> bytes:
        """All that was put so far, as little-endian uint32."""
        words: np.ndarray = self._encoder.get_compressed()
        return words.astype("<u4").tobytes()


class Decoder:
    """Reads symbols back; damaged words give wrong symbols, not errors: check the content."""

    def __init__(self, words: bytes) -> None:
        """Raises CorruptArchive unless `words` is a whole number of words."""
        if len(words) % WORD_BYTES:
            raise CorruptArchive(f"coded words of {len(words)} bytes, not a multiple of 4")
        self._decoder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(words, "<u4").astype(np.uint32)
        )

    def get(self, weights: np.ndarray) -> np.ndarray:
        """weights float64 [n, K] as they were put → symbols int32 [n]."""
        try:
            return self._decoder.decode(_FAMILY, weights)  # type: ignore[no-any-return]
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            _refuse(error)

    def get_alike(self, count: int, weights: np.ndarray) -> np.ndarray:
        """weights float64 [K] as they were put → symbols int32 [count]."""
        try:
            return self._decoder.decode(_alike(weights), count)  # type: ignore[no-any-return]
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            _refuse(error)

    def finish(self) -> None:
        """Raises CorruptArchive unless all words were needed by the symbols that were read."""
        if not self._decoder.maybe_exhausted():
            raise CorruptArchive("coded words are left over")


def _alike(weights: np.ndarray) -> object:
    return constriction.stream.model.Categorical(weights, perfect=False)


def _refuse(error: Exception) -> NoReturn:
    raise CorruptArchive(f"coded words make no sense ({type(error).__name__})") from None
