"""Symbols + weights ↔ payload bytes. The only file that imports constriction.

Range coding of bits, and of symbols by categorical models, whose weights are float64 arrays of
integers ≥ 1, two at least. Knows nothing of models and of frames.
"""

from __future__ import annotations

import constriction
import numpy as np

from llmzip.errors import CorruptArchive

# Without perfect=… constriction prints a warning to stdout, where the data may be going.
_BIT = constriction.stream.model.Bernoulli(perfect=False)
WORD_BYTES = 4
_STATE_BITS, _WORD_BITS = 64, 32  # of constriction's range coder


class Encoder:
    """Collects symbols into a payload."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def put_alike(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """symbols int32 [n], each below K, all by the same weights float64 [K]."""
        self._encoder.encode(symbols, _alike(weights))

    def put_bits(self, bits: np.ndarray, probabilities: np.ndarray) -> None:
        """bits uint8 [n]; probabilities uint16 [n]: that of a one is p / 2^16, 1 ≤ p."""
        self._encoder.encode(bits.astype(np.int32), _BIT, probabilities / 65536.0)

    def size(self) -> int:
        """Bytes of the payload that are settled so far."""
        return WORD_BYTES * int(self._encoder.pos()[0])

    def payload(self) -> bytes:
        """All that was put so far: big-endian words, the last of them cut as short as it can be.

        Any number within the coder's final interval decodes to the same symbols, and a decoder
        reads zeros beyond the end. So the payload is the number of the interval that has the
        most zero bytes at its end, without them: less than 8 bits more than −log2 of the
        interval's width, where whole words would cost up to 40.
        """
        flushed, state = self._encoder.pos()
        lower, width = map(int, state)
        # the library's own choice of a number within the interval; it may end in a zero word
        words = self._encoder.get_compressed()[: flushed + 1]
        if not len(words):
            return b""
        whole = int.from_bytes(words.astype(">u4").tobytes(), "big")
        whole <<= _STATE_BITS - _WORD_BITS
        low = whole - (whole - lower) % (1 << _STATE_BITS)
        bits = _STATE_BITS
        while (number := -(-low >> bits) << bits) >= low + width:
            bits -= 8
        size = WORD_BYTES * len(words) + (_STATE_BITS - _WORD_BITS) // 8
        payload = number.to_bytes(size, "big").rstrip(b"\0")
        # a reader that needs more than four words beyond the payload's takes it for damaged
        return payload.ljust(WORD_BYTES * (flushed - 2), b"\0")


class Decoder:
    """Reads symbols back; a damaged payload gives wrong symbols, not errors: check the content."""

    def __init__(self, payload: bytes) -> None:
        padded = payload + bytes(-len(payload) % WORD_BYTES)
        self._decoder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(padded, ">u4").astype(np.uint32)
        )

    def get_alike(self, count: int, weights: np.ndarray) -> np.ndarray:
        """weights float64 [K] as they were put → symbols int32 [count]."""
        try:
            return self._decoder.decode(_alike(weights), count)  # type: ignore[no-any-return]
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise CorruptArchive(f"the payload makes no sense ({type(error).__name__})") from None


def _alike(weights: np.ndarray) -> object:
    return constriction.stream.model.Categorical(weights, perfect=False)
