"""logits → integer weights; F1 to F3 are the module's own guarantees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmzip.errors import UnsupportedModel
from llmzip.inference.frequencies import SymbolLayout


@pytest.mark.parametrize("vocabulary", [2, 3, 5, 16, 17, 105, 512, 8192, 50257])
@pytest.mark.parametrize("escapes", [0, 256])
def test_every_id_has_a_place(vocabulary: int, escapes: int) -> None:
    layout = SymbolLayout(vocabulary, vocabulary + escapes)
    assert layout.rows >= 2
    assert layout.columns >= 2
    assert layout.rows * layout.columns >= layout.size
    assert (layout.rows - 1) * layout.columns < max(layout.size, layout.columns + 1)


@given(seed=st.integers(0, 2**32), vocabulary=st.integers(2, 700), spread=st.floats(0, 1e6))
def test_f1_f2_weights_are_positive_integers_with_exact_sums(
    seed: int, vocabulary: int, spread: float
) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    layout = SymbolLayout(vocabulary, vocabulary + 256)
    weights = layout.frequencies(logits.clone())
    whole, sums = weights.table(), weights.rows()
    assert whole.dtype == np.int32
    assert whole.min() >= 1
    assert np.array_equal(sums, whole.sum(-1, dtype=np.int64))
    assert sums.sum(-1).max() < 2**53
    on_device = layout.frequencies_on_device(logits.clone())
    assert np.array_equal(on_device.table(), whole)
    assert np.array_equal(on_device.rows(), sums)
    rows = np.array([layout.rows - 1, seed % layout.rows], dtype=np.int32)
    assert np.array_equal(on_device.columns(rows), weights.columns(rows))
    ids = np.array([[0, -1], [seed % vocabulary, 1], [vocabulary, 1]], dtype=np.int32)
    assert np.array_equal(on_device.of(ids), weights.of(ids))


def test_weights_follow_the_softmax() -> None:
    logits = torch.randn(20, 512, generator=torch.Generator().manual_seed(3)) * 3
    p = logits.double().softmax(-1)
    frequencies = SymbolLayout(512, 512).frequencies(logits.clone()).table()
    weights = torch.from_numpy(frequencies).view(20, -1).double()
    q = weights / weights.sum(-1, keepdim=True)
    divergence = (p * (p / q).log2()).sum(-1)
    assert float(divergence.max()) < 1e-5


def test_f3_equal_logits_have_equal_weights_whatever_else_is_in_the_batch() -> None:
    row = torch.randn(1, 300, generator=torch.Generator().manual_seed(4))
    other = torch.randn(7, 300, generator=torch.Generator().manual_seed(5)) * 50
    alone = SymbolLayout(300, 300).frequencies(row.clone()).table()
    together = SymbolLayout(300, 300).frequencies(torch.cat([other, row])).table()
    assert np.array_equal(alone[0], together[-1])


def test_columns_are_those_of_the_row() -> None:
    layout = SymbolLayout(300, 300)
    weights = layout.frequencies(torch.randn(5, 300, generator=torch.Generator().manual_seed(6)))
    rows = np.array([0, 3, 1, layout.rows - 1, 2], dtype=np.int32)
    columns = weights.columns(rows)
    for i, row in enumerate(rows.tolist()):
        assert np.array_equal(columns[i], weights.table()[i, row])


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    logits = torch.zeros(2, 10)
    logits[1, 4] = bad
    layout = SymbolLayout(10, 10)
    for weights in (layout.frequencies_on_cpu, layout.frequencies_on_device):
        with pytest.raises(UnsupportedModel, match="not finite"):
            weights(logits.clone())
        with pytest.raises(UnsupportedModel, match="not finite"):
            weights(torch.full((1, 10), -float("inf")))


def test_minus_infinity_is_just_very_unlikely() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 4] = float("-inf")
    assert SymbolLayout(10, 10).frequencies(logits).table().reshape(-1)[4] == 1
