"""Symbols ↔ payload, and the exact bytes that must never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmzip.errors import CorruptArchive
from llmzip.range_coder import Decoder, Encoder


def _weights(rows: int, columns: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.floor(np.exp2(generator.uniform(0, 30, (rows, columns))))


def _put(encoder: Encoder, symbols: np.ndarray, weights: np.ndarray) -> None:
    """Each of the symbols by a row of weights of its own."""
    for symbol, row in zip(symbols, weights, strict=True):
        encoder.put_alike(np.array([symbol], dtype=np.int32), row)


def _get(decoder: Decoder, weights: np.ndarray) -> np.ndarray:
    return np.concatenate([decoder.get_alike(1, row) for row in weights])


@given(seed=st.integers(0, 2**32), steps=st.integers(0, 30), streams=st.integers(1, 5))
def test_round_trip(seed: int, steps: int, streams: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 300, steps)
    blocks = [_weights(streams, int(size), seed + i) for i, size in enumerate(sizes)]
    known = [generator.integers(0, size, streams).astype(np.int32) for size in sizes]
    encoder = Encoder()
    for symbols, weights in zip(known, blocks, strict=True):
        _put(encoder, symbols, weights)
    decoder = Decoder(encoder.payload())
    for symbols, weights in zip(known, blocks, strict=True):
        assert np.array_equal(_get(decoder, weights), symbols)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 60),
    sharpness=st.sampled_from([1, 12, 30]),
    likely=st.booleans(),
)
def test_a_payload_costs_less_than_a_byte_more_than_its_symbols(
    seed: int, count: int, sharpness: int, likely: bool
) -> None:
    generator = np.random.default_rng(seed)
    weights = np.floor(2.0 ** generator.uniform(0, sharpness, (count, 7)))
    symbols = weights.argmax(1) if likely else generator.integers(0, 7, count)
    symbols = symbols.astype(np.int32)
    encoder = Encoder()
    _put(encoder, symbols, weights)
    payload = encoder.payload()
    assert np.array_equal(_get(Decoder(payload), weights), symbols)
    # zeros at the end are left out, but for those that a reader would take for missing words
    assert not payload.endswith(b"\0") or len(payload) == encoder.size() - 8
    shares = weights[np.arange(count), symbols] / weights.sum(1)
    # the library gives each symbol 2^-24 at least, and rounds by as much
    bits = -np.log2(np.maximum(shares * (1 - 2.0**-20), 2.0**-24) - 2.0**-25).sum()
    assert 8 * len(payload) < bits + 8


def test_the_payload_is_that_of_the_format() -> None:
    """Fixed weights and symbols: these bytes are part of format version 1."""
    weights = np.array([[1, 2, 3, 4], [2**30, 1, 1, 1], [5, 5, 5, 5]], dtype=np.float64)
    encoder = Encoder()
    for symbol in (3, 0, 2, 1):
        _put(encoder, np.full(3, symbol), weights)
    assert encoder.payload().hex() == PAYLOAD


PAYLOAD = "ffffffcd8ecd99301a7f34"


def test_no_symbols_need_no_bytes() -> None:
    assert Encoder().payload() == b""


@given(payload=st.binary(max_size=64))
def test_a_damaged_payload_gives_symbols_or_our_error(payload: bytes) -> None:
    try:
        decoder = Decoder(payload)
        for _ in range(20):
            symbols = _get(decoder, _weights(3, 7, 1))
            assert symbols.min() >= 0
            assert symbols.max() < 7
    except CorruptArchive:
        pass


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """constriction warns on stdout if it is not told which distribution is meant."""
    encoder = Encoder()
    encoder.put_alike(np.zeros(1, dtype=np.int32), np.ones(4))
    encoder.put_bits(np.zeros(1, dtype=np.uint8), np.ones(1, dtype=np.uint16))
    assert capfd.readouterr() == ("", "")
