"""Symbols ↔ words, and the exact words that must never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmzip.coder import Decoder, Encoder
from llmzip.errors import CorruptArchive


def _weights(rows: int, columns: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.floor(np.exp2(generator.uniform(0, 30, (rows, columns))))


@given(seed=st.integers(0, 2**32), steps=st.integers(0, 30), streams=st.integers(1, 5))
def test_round_trip(seed: int, steps: int, streams: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 300, steps)
    blocks = [_weights(streams, int(size), seed + i) for i, size in enumerate(sizes)]
    known = [generator.integers(0, size, streams).astype(np.int32) for size in sizes]
    encoder = Encoder()
    for symbols, weights in zip(known, blocks, strict=True):
        encoder.put(symbols, weights)
    decoder = Decoder(encoder.words())
    for symbols, weights in zip(known, blocks, strict=True):
        assert np.array_equal(decoder.get(weights), symbols)
    decoder.finish()


def test_the_words_are_those_of_the_format() -> None:
    """Fixed weights and symbols: these words are part of format version 1."""
    weights = np.array([[1, 2, 3, 4], [2**30, 1, 1, 1], [5, 5, 5, 5]], dtype=np.float64)
    encoder = Encoder()
    for symbol in (3, 0, 2, 1):
        encoder.put(np.full(3, symbol, dtype=np.int32), weights)
    assert encoder.words().hex() == WORDS


WORDS = "cdffffff3099cd8e3a337f1a"


def test_no_symbols_need_no_words() -> None:
    assert Encoder().words() == b""


@given(words=st.binary(max_size=64))
def test_damaged_words_give_symbols_or_our_error(words: bytes) -> None:
    try:
        decoder = Decoder(words)
        for _ in range(20):
            symbols = decoder.get(_weights(3, 7, 1))
            assert symbols.min() >= 0
            assert symbols.max() < 7
        decoder.finish()
    except CorruptArchive:
        pass


def test_words_left_over_are_noticed() -> None:
    decoder = Decoder(b"\x12\x34\x56\x78" * 4)
    with pytest.raises(CorruptArchive, match="left over"):
        decoder.finish()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """constriction warns on stdout if it is not told which distribution is meant."""
    Encoder().put(np.zeros(1, dtype=np.int32), np.ones((1, 4)))
    assert capfd.readouterr() == ("", "")
