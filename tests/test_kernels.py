"""Compiled loops of a step: the bits of what they replace."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from llmzip.compiled import compiled
from llmzip.exact import ops, tables
from llmzip.exact.ahead import nothing
from llmzip.exact.float_bits import bits_of, float_of, ordered, shift_right
from llmzip.exact.rows import ROUNDER, absmax, maximum
from llmzip.exact.softmax import softmax

FLOATS = np.array([0.0, -0.0, 1e-45, -1e-45, 1.5, -1.5, 3e38, -3e38, np.inf, -np.inf], np.float32)


def _softmax(
    scores: np.ndarray, scales: np.ndarray, bound: np.float32, step: float = 1
) -> np.ndarray:
    n = len(scores)
    buffer, weights = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.int32)
    steps = np.full(n, step, np.float32)
    softmax(scores, steps, scales, np.float32(1), bound, buffer, weights, nothing())
    return weights


@pytest.mark.parametrize("best", [-1, 0, 7])
def test_computed_exponentials_are_those_of_the_table(best: int) -> None:
    """With a bound for which weights are not scaled. Scores are in half steps, rounded to even."""
    scores = best - np.arange(2 * tables.EXP2_CUTOFF + 4000, dtype=np.int32)
    steps = np.minimum(np.round((best - scores) / 2), tables.EXP2_CUTOFF).astype(np.int64)
    expected = tables.attention_weights().numpy()[steps]
    bound = np.float32(65536 / expected.sum(dtype=np.int64))
    scales = np.ones(len(scores), np.float32)
    assert np.array_equal(_softmax(scores, scales, bound, step=0.5), expected)


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a · b + c in float32, rounded once: the product is exact in float64, and the sum rounded to
    odd, so that it is not rounded twice."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    rest = total - product
    error = (product - (total - rest)) + (c - rest)
    even = total.view(np.int64) % 2 == 0
    nudged = np.nextafter(total, np.copysign(np.inf, error))
    return np.where((error != 0) & even, nudged, total).astype(np.float32)


@pytest.mark.parametrize("fused", list(itertools.product([False, True], repeat=5)))
def test_the_polynomial_gives_the_table_however_it_is_contracted(fused: tuple[bool, ...]) -> None:
    t = np.arange(1024)
    x = (t - tables.EXP2_CENTER).astype(np.float32)
    constant, *others = (np.full(1024, c, np.float32) for c in tables.EXP2_POLYNOMIAL)
    y = others.pop()
    for together, c in zip(fused, [*others[::-1], constant + ROUNDER], strict=True):
        y = _fused(y, x, c) if together else y * x + c
    assert np.array_equal(y - ROUNDER, tables.exp2_mantissas(10, 16))


@pytest.mark.parametrize("step", [np.inf, np.nan])
def test_softmax_of_what_is_not_finite_is_nothing(step: float) -> None:
    scores, scales = np.array([-3, 0, 2, 2], np.int32), np.ones(4, np.float32)
    assert not _softmax(scores, scales, np.float32(1), step).any()


@pytest.mark.parametrize("keys", [1, 2, 31, 513, 40_000])
def test_softmax_is_that_of_its_definition(keys: int) -> None:
    """40,000 equal keys: the sum of their weights exceeds 31 bits."""
    chance = np.random.default_rng(keys)
    scores = chance.integers(-20_000, 20_000, keys) if keys < 40_000 else np.zeros(keys)
    scales = chance.uniform(0.01, 3, keys).astype(np.float32)
    weights = _softmax(scores.astype(np.int32), scales, scales.max())
    steps = np.minimum(scores.max() - scores, tables.EXP2_CUTOFF).astype(np.int64)
    expected = tables.attention_weights().numpy()[steps]
    total = np.float32(expected.sum(dtype=np.int64))
    factor = np.float32(1) / (total * scales.max()) * np.float32(65536)
    assert np.array_equal(weights, np.round(expected.astype(np.float32) * scales * factor))


@compiled
def _patterns(x: np.ndarray, out: np.ndarray, back: np.ndarray) -> None:
    for i in range(len(x)):
        out[i] = ordered(bits_of(x[i]))
        back[i] = float_of(np.int32(ordered(out[i])))


def test_patterns_of_floats_have_their_order() -> None:
    x = np.sort(FLOATS)
    out, back = np.empty(len(x), dtype=np.int32), np.empty_like(x)
    _patterns(x, out, back)
    assert (np.diff(out.astype(np.int64))[np.diff(x) > 0] > 0).all()
    assert np.array_equal(back.view(np.int32), x.view(np.int32))


@compiled
def _shifted(x: int, count: int) -> int:
    shifted: int = shift_right(np.int32(x), np.int32(count))
    return shifted


def test_shifts_are_of_32_bits() -> None:
    assert [_shifted(65536, n) for n in (0, 16, 17)] == [65536, 1, 0]
    assert _shifted(-1, 1) == 2**31 - 1


def test_largest_numbers_of_rows() -> None:
    for x in (FLOATS[:8], FLOATS[:4], np.array([-2.5, 2], np.float32)):
        assert absmax(x) == ops.row_absmax(torch.from_numpy(x))[0]
    assert maximum(np.array([0.5, 3e38, 1e-45], np.float32)) == np.float32(3e38)
