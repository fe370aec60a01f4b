"""A second implementation of the range coder agrees with constriction, word for word."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pure import constriction as pure

from llmzip import range_coder


@given(seed=st.integers(0, 2**32), count=st.integers(0, 60), sharpness=st.sampled_from([2, 12, 29]))
def test_the_same_words(seed: int, count: int, sharpness: int) -> None:
    generator = np.random.default_rng(seed)
    k = int(generator.integers(2, 40))
    weights = np.floor(2.0 ** generator.uniform(0, sharpness, (count, k)))
    # likely symbols as a rule, so that carries and short words occur
    symbols = weights.argmax(1) if seed % 2 else generator.integers(0, k, count)
    symbols = symbols.astype(np.int32)
    words = []
    for library in (constriction, pure):
        family = library.stream.model.Categorical(perfect=False)
        encoder = library.stream.queue.RangeEncoder()
        for i in range(0, count, 7):
            encoder.encode(symbols[i : i + 7], family, weights[i : i + 7])
        words.append(encoder.get_compressed())
        assert encoder.num_words() == len(words[-1])
        decoder = library.stream.queue.RangeDecoder(words[0])
        if count:
            assert decoder.decode(family, weights).tolist() == symbols.tolist()
        assert decoder.maybe_exhausted()
    assert words[0].tolist() == words[1].tolist()


@given(seed=st.integers(0, 2**32), count=st.integers(1, 200), extreme=st.booleans())
def test_the_same_words_of_bits(seed: int, count: int, extreme: bool) -> None:
    generator = np.random.default_rng(seed)
    levels = generator.choice([1, 65535], count) if extreme else generator.integers(1, 65536, count)
    bits = (generator.random(count) * 65536 < levels).astype(np.int32)
    words = []
    for library in (constriction, pure):
        encoder = library.stream.queue.RangeEncoder()
        family = library.stream.model.Bernoulli(perfect=False)
        encoder.encode(bits, family, levels / 65536)
        words.append(encoder.get_compressed().tolist())
    assert words[0] == words[1]


def test_it_refuses_what_is_no_code() -> None:
    """Where the library raises, so does this one: a point beyond the last symbol."""
    words = np.array([2**32 - 1] * 3, dtype=np.uint32)
    weights = np.full((60, 3), 5.0)
    outcomes = []
    for library in (constriction, pure):
        family = library.stream.model.Categorical(perfect=False)
        decoder = library.stream.queue.RangeDecoder(words)
        try:
            outcomes.append(decoder.decode(family, weights).tolist())
        except AssertionError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]
    if outcomes[0] is None:
        with pytest.raises(AssertionError):
            pure.stream.queue.RangeDecoder(words).decode(pure.Categorical(perfect=False), weights)


def test_it_has_all_that_llmzip_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    weights = np.floor(2.0 ** generator.uniform(0, 12, 9))
    symbols = generator.integers(0, 9, 50).astype(np.int32)
    levels = generator.integers(1, 65536, 300).astype(np.uint16)
    bits = (generator.random(300) * 65536 < levels).astype(np.uint8)
    made = []
    for library in (constriction, pure):
        monkeypatch.setattr(range_coder, "constriction", library)
        monkeypatch.setattr(range_coder, "_BIT", library.stream.model.Bernoulli(perfect=False))
        encoder = range_coder.Encoder()
        encoder.put_alike(symbols, weights)
        sizes = [encoder.size()]
        encoder.put_bits(bits, levels)
        sizes.append(encoder.size())
        made.append((encoder.payload(), sizes))
        decoder = range_coder.Decoder(made[0][0])
        assert decoder.get_alike(50, weights).tolist() == symbols.tolist()
    assert made[0] == made[1]
