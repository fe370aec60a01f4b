"""logits → integer weights; F1 to F3 are the module's own guarantees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmzip import frequencies
from llmzip.errors import UnsupportedModel
from llmzip.frequencies import Layout


@pytest.mark.parametrize("vocabulary", [2, 3, 5, 16, 17, 105, 512, 8192, 50257])
@pytest.mark.parametrize("escapes", [0, 256])
def test_every_id_has_a_place(vocabulary: int, escapes: int) -> None:
    layout = Layout(vocabulary, vocabulary + escapes)
    assert layout.rows >= 2
    assert layout.columns >= 2
    assert layout.rows * layout.columns >= layout.size
    assert (layout.rows - 1) * layout.columns < max(layout.size, layout.columns + 1)


@given(seed=st.integers(0, 2**32), vocabulary=st.integers(2, 700), spread=st.floats(0, 1e6))
def test_f1_f2_weights_are_positive_integers_with_exact_sums(
    seed: int, vocabulary: int, spread: float
) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    weights = Layout(vocabulary, vocabulary + 256).weights(logits)
    assert weights.dtype == torch.int32
    assert int(weights.min()) >= 1
    sums = frequencies.row_sums(weights)
    assert torch.equal(sums, weights.sum(-1, dtype=torch.int64).double())
    assert float(sums.sum(-1).max()) < 2**53


def test_weights_follow_the_softmax() -> None:
    logits = torch.randn(20, 512, generator=torch.Generator().manual_seed(3)) * 3
    p = logits.double().softmax(-1)
    weights = Layout(512, 512).weights(logits.clone()).view(20, -1).double()
    q = weights / weights.sum(-1, keepdim=True)
    divergence = (p * (p / q).log2()).sum(-1)
    assert float(divergence.max()) < 1e-5


def test_f3_equal_logits_have_equal_weights_whatever_else_is_in_the_batch() -> None:
    row = torch.randn(1, 300, generator=torch.Generator().manual_seed(4))
    other = torch.randn(7, 300, generator=torch.Generator().manual_seed(5)) * 50
    alone = Layout(300, 300).weights(row.clone())
    together = Layout(300, 300).weights(torch.cat([other, row]))
    assert torch.equal(alone[0], together[-1])


def test_columns_are_those_of_the_row() -> None:
    layout = Layout(300, 300)
    weights = layout.weights(torch.randn(5, 300, generator=torch.Generator().manual_seed(6)))
    rows = torch.tensor([0, 3, 1, layout.rows - 1, 2])
    columns = frequencies.columns_of(weights, rows)
    for i, row in enumerate(rows.tolist()):
        assert torch.equal(columns[i], weights[i, row].double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    logits = torch.zeros(2, 10)
    logits[1, 4] = bad
    with pytest.raises(UnsupportedModel, match="not finite"):
        Layout(10, 10).weights(logits)


def test_minus_infinity_is_just_very_unlikely() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 4] = float("-inf")
    assert Layout(10, 10).weights(logits).view(-1)[4] == 1
