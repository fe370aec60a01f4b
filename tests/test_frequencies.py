"""Logits → integer frequencies; F1 to F3 are the module's own guarantees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmzip.errors import UnsupportedModel
from llmzip.inference.frequencies import TokenFrequencies, bits


@given(seed=st.integers(0, 2**32), vocabulary=st.integers(2, 700), spread=st.floats(0, 1e6))
def test_f1_f2_frequencies_are_positive_integers_of_bounded_sum(
    seed: int, vocabulary: int, spread: float
) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    ids = np.random.default_rng(seed).permutation(vocabulary + 256)
    frequencies = TokenFrequencies(vocabulary, ids)
    found = frequencies.of(logits.clone())
    assert found.dtype == np.int32
    assert found.min() >= 1
    assert found.sum(-1, dtype=np.int64).max() < 2**53
    assert np.array_equal(frequencies.on_device(logits.clone()), found)
    in_order = TokenFrequencies(vocabulary, np.arange(vocabulary + 256)).of(logits.clone())
    assert np.array_equal(in_order[:, ids], found)


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.randn(20, 512, generator=torch.Generator().manual_seed(3)) * 3
    p = logits.double().softmax(-1)
    q = torch.from_numpy(TokenFrequencies(512, np.arange(512)).of(logits.clone())).double()
    q /= q.sum(-1, keepdim=True)
    assert float((p * (p / q).log2()).sum(-1).max()) < 1e-5


def test_f3_equal_logits_have_equal_frequencies_whatever_else_is_in_the_batch() -> None:
    row = torch.randn(1, 300, generator=torch.Generator().manual_seed(4))
    other = torch.randn(7, 300, generator=torch.Generator().manual_seed(5)) * 50
    frequencies = TokenFrequencies(300, np.arange(300))
    together = frequencies.of(torch.cat([other, row]))
    assert np.array_equal(frequencies.of(row.clone())[0], together[-1])


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    logits = torch.zeros(2, 10)
    logits[1, 4] = bad
    frequencies = TokenFrequencies(10, np.arange(10))
    for compute in (frequencies.of, frequencies.on_device):
        with pytest.raises(UnsupportedModel, match="not finite"):
            compute(logits.clone())
        with pytest.raises(UnsupportedModel, match="not finite"):
            compute(torch.full((1, 10), -float("inf")))


def test_minus_infinity_is_just_very_unlikely() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 4] = float("-inf")
    assert TokenFrequencies(10, np.arange(10)).of(logits)[0, 4] == 1


def test_bits_are_the_information_content() -> None:
    frequencies = np.array([[1, 1, 2], [4, 2, 2]], dtype=np.int32)
    assert bits(frequencies, np.array([2, 1])) == 1 + 2


def test_another_number_of_logits_is_refused() -> None:
    frequencies = TokenFrequencies(8, np.arange(8))
    with pytest.raises(UnsupportedModel, match="9 logits"):
        frequencies.of(np.zeros((1, 9), np.float32))
