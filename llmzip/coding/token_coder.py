"""Tokens + the language model's frequencies ↔ the payload of a frame: mixing and entropy coder.

Both directions call the same compiled function, row by row in the same order, so that both learn
the same.
"""

from __future__ import annotations

import numpy as np

from llmzip.bit_decoder import new_coder
from llmzip.errors import CorruptArchive
from llmzip.mixing.distribution import Distributions, of_rows
from llmzip.mixing.state import State, level_of
from llmzip.mixing.vocabulary import Vocabulary
from llmzip.mixing.walk import Decisions, code_rows, new_scratch

_DECISIONS_PER_BYTE = 9  # the flag and the bits


class _TokenCoder:
    def __init__(self, vocabulary: Vocabulary, state: State, mixing: bool) -> None:
        self._vocabulary, self._mixing = vocabulary, mixing
        self._history, self._learned = state
        self._scratch = new_scratch(len(vocabulary), level_of(state))

    def _code(
        self,
        decoding: bool,
        given: np.ndarray | Distributions,
        first: int,
        streams: int,
        ranks: np.ndarray,
        decisions: Decisions,
        coder: np.ndarray,
        words: np.ndarray,
    ) -> bool:
        if isinstance(given, np.ndarray):
            given = of_rows(given)
        # compiled code does not check
        if len(given.starts):
            assert len(given.starts) == len(ranks) + 1
            assert given.starts[-1] <= len(given.answers)
        else:
            assert given.frequencies.shape == (len(ranks), len(self._vocabulary))
            assert len(given.sums) in (0, len(ranks))
        if not (summed := len(given.sums) > 0):
            given = given._replace(sums=self._scratch.sums, most=self._scratch.most)
        assert 0 <= first < first + streams <= len(self._history.ring)
        return code_rows(
            decoding, self._mixing, self._vocabulary.tokens, self._history, self._learned,
            self._scratch, given, summed, first, streams, ranks, decisions, coder, words,
        )  # fmt: skip


class TokenEncoder(_TokenCoder):
    """Notes the decisions that spell tokens."""

    def __init__(self, vocabulary: Vocabulary, state: State, *, mixing: bool = True) -> None:
        """`state` to begin with, which is changed."""
        super().__init__(vocabulary, state, mixing)

    def code(
        self, given: np.ndarray | Distributions, first: int, streams: int, ranks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies int32 [k, n], or distributions, and int32 ranks [k] of the next token of
        each of the streams `first` … `first + streams - 1` in turn → bits uint8 [d], probabilities
        uint16 [d]."""
        most = int(self._vocabulary.tokens.lengths[ranks].sum()) * _DECISIONS_PER_BYTE + len(ranks)
        decisions = Decisions(
            np.empty(most, dtype=np.uint8),
            np.empty(most, dtype=np.uint16),
            np.zeros(1, dtype=np.int64),
        )
        none = np.zeros(4, dtype=np.uint64), np.zeros(0, dtype=np.uint32)
        self._code(False, given, first, streams, ranks.copy(), decisions, *none)
        count = int(decisions.made[0])
        return decisions.bits[:count], decisions.probabilities[:count]


class TokenDecoder(_TokenCoder):
    """Asks a payload for tokens; a damaged one gives wrong tokens, or CorruptArchive."""

    def __init__(
        self, vocabulary: Vocabulary, state: State, payload: bytes, *, mixing: bool = True
    ) -> None:
        """`state` as for `TokenEncoder`."""
        super().__init__(vocabulary, state, mixing)
        padded = payload + bytes(-len(payload) % 4)
        self._words = np.frombuffer(padded, ">u4").astype(np.uint32)
        self._coder = new_coder(self._words)
        nothing = np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.uint16)
        self._decisions = Decisions(*nothing, np.zeros(1, dtype=np.int64))

    def code(self, given: np.ndarray | Distributions, first: int, streams: int) -> np.ndarray:
        """The ranks int32 [k] that `TokenEncoder.code` was given with the same frequencies."""
        frequencies = given if isinstance(given, np.ndarray) else given.frequencies
        ranks = np.zeros(len(frequencies), dtype=np.int32)
        if not self._code(
            True, given, first, streams, ranks, self._decisions, self._coder, self._words
        ):
            raise CorruptArchive("the coded words are too few, or make no sense")
        return ranks
