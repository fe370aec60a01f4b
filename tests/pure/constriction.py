"""The part of constriction that llmzip uses, in plain Python: slow, for platforms that have no
build of it, and to check that what docs/format.md says of the coder is all that is needed.

After the library's own algorithms: range coding with words of 32 bits and a state of 64.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

__version__ = "0.5.0, in Python"

_PRECISION, _WORD, _STATE = 24, 32, 64
_ALL = (1 << _STATE) - 1
_LOW = (1 << _WORD) - 1


class Categorical:
    """A family; a model if it is given weights, float64 [K]."""

    def __init__(self, weights: np.ndarray | None = None, *, perfect: bool) -> None:
        assert not perfect
        self._one = None if weights is None else self._bounds(weights[None])

    def bounds(self, weights: np.ndarray | int) -> np.ndarray:
        """float64 [n, K] → where each symbol begins and the last ends, int64 [n, K + 1].

        A model takes n instead."""
        if self._one is not None:
            return np.broadcast_to(self._one, (int(weights), self._one.shape[1]))
        return self._bounds(weights)

    @staticmethod
    def _bounds(weights: np.ndarray) -> np.ndarray:
        n, k = weights.shape
        before = np.cumsum(weights, axis=1) - weights  # integers below 2^53: exact
        scale = ((1 << _PRECISION) - k) / weights.sum(1)
        bounds = np.empty((n, k + 1), dtype=np.int64)
        bounds[:, :k] = (before * scale[:, None]).astype(np.int64) + np.arange(k)
        bounds[:, k] = 1 << _PRECISION
        return bounds


class Bernoulli:
    """Probabilities of a one, multiples of 2^-16."""

    def __init__(self, *, perfect: bool) -> None:
        assert not perfect

    @staticmethod
    def bounds(probabilities: np.ndarray) -> np.ndarray:
        """float64 [n] → where zero and one begin and the latter ends, int64 [n, 3]."""
        rest = 65536 - (probabilities * 65536).astype(np.int64)
        middle = 1 + (rest * ((1 << _PRECISION) - 2) >> 16)
        ends = np.full(len(rest), 1 << _PRECISION)
        return np.stack([np.zeros_like(rest), middle, ends], 1)


class RangeEncoder:
    def __init__(self) -> None:
        self._words: list[int] = []
        self._lower, self._range = 0, _ALL

    def encode(
        self,
        symbols: np.ndarray,
        family: Categorical | Bernoulli,
        weights: np.ndarray | None = None,
    ) -> None:
        weights = len(symbols) if weights is None else weights
        for symbol, bounds in zip(symbols.tolist(), family.bounds(weights), strict=True):
            left, right = int(bounds[symbol]), int(bounds[symbol + 1])
            scale = self._range >> _PRECISION
            self._range = scale * (right - left)
            self._add(scale * left)
            if self._range <= _LOW:
                self._words.append(self._lower >> _WORD)
                self._lower, self._range = self._lower << _WORD & _ALL, self._range << _WORD

    def _add(self, amount: int) -> None:
        self._lower += amount
        if self._lower > _ALL:
            self._lower &= _ALL
            _carry(self._words)

    def pos(self) -> tuple[int, tuple[int, int]]:
        return len(self._words), (self._lower, self._range)

    def num_words(self) -> int:
        return len(self.get_compressed())

    def get_compressed(self) -> np.ndarray:
        words = list(self._words)
        if self._range != _ALL:
            point = self._lower + _LOW
            if point > _ALL:
                point &= _ALL
                _carry(words)
            words.append(point >> _WORD)
            if (self._lower + self._range & _ALL) >> _WORD == point >> _WORD:
                words.append(0)
        return np.array(words, dtype=np.uint32)


def _carry(words: list[int]) -> None:
    at = len(words) - 1
    while words[at] == _LOW:
        words[at] = 0
        at -= 1
    words[at] += 1


class RangeDecoder:
    def __init__(self, words: np.ndarray) -> None:
        self._words, self._at = words.tolist(), 0
        self._lower, self._range = 0, _ALL
        self._point = self._next() << _WORD
        self._point |= self._next()

    def _next(self) -> int:
        self._at += 1
        return self._words[self._at - 1] if self._at <= len(self._words) else 0

    def decode(self, family: Categorical | Bernoulli, weights: np.ndarray) -> np.ndarray:
        symbols = []
        for bounds in family.bounds(weights):
            scale = self._range >> _PRECISION
            quantile = (self._point - self._lower & _ALL) // scale
            if quantile >> _PRECISION:
                raise AssertionError("invalid data")
            symbol = int(np.searchsorted(bounds, quantile, side="right")) - 1
            left, right = int(bounds[symbol]), int(bounds[symbol + 1])
            self._lower = self._lower + scale * left & _ALL
            self._range = scale * (right - left)
            if self._range <= _LOW:
                self._lower, self._range = self._lower << _WORD & _ALL, self._range << _WORD
                self._point = self._point << _WORD & _ALL | self._next()
            symbols.append(symbol)
        return np.array(symbols, dtype=np.int32)

    def maybe_exhausted(self) -> bool:
        return self._at >= len(self._words)


stream = SimpleNamespace(
    model=SimpleNamespace(Categorical=Categorical, Bernoulli=Bernoulli),
    queue=SimpleNamespace(RangeEncoder=RangeEncoder, RangeDecoder=RangeDecoder),
)
