"""Weights of candidates → their places among the weights of rows and of columns."""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled


def place_in_rows(
    rows: np.ndarray, candidates: np.ndarray, known: np.ndarray, weights: np.ndarray, columns: int
) -> None:
    """Change sums of rows, float64 [n, R], from what candidates [n, K] weighed to what they
    weigh now; an id lies in row id ÷ columns."""
    _place_in_rows(rows, candidates, known, weights, columns)


def place_in_columns(
    within: np.ndarray, row: np.ndarray, candidates: np.ndarray, weights: np.ndarray
) -> None:
    """Put weights of candidates [n, K] among those of the columns of one row each, float64
    [n, C], row int32 [n]."""
    _place_in_columns(within, row, candidates, weights)


@compiled
def _place_in_rows(
    rows: np.ndarray,
    candidates: np.ndarray,
    known: np.ndarray,
    weights: np.ndarray,
    columns: int,
) -> None:
    for s in range(len(candidates)):
        for j in range(candidates.shape[1]):
            if candidates[s, j] >= 0:
                rows[s, candidates[s, j] // columns] -= known[s, j]
        # whole numbers until here, so a row that holds others still weighs at least 1
        for j in range(candidates.shape[1]):
            if candidates[s, j] >= 0:
                rows[s, candidates[s, j] // columns] += weights[s, j]


@compiled
def _place_in_columns(
    within: np.ndarray,
    row: np.ndarray,
    candidates: np.ndarray,
    weights: np.ndarray,
) -> None:
    columns = within.shape[1]
    for s in range(len(candidates)):
        for j in range(candidates.shape[1]):
            if candidates[s, j] >= 0 and candidates[s, j] // columns == row[s]:
                within[s, candidates[s, j] % columns] = weights[s, j]
