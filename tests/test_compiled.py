"""Compiled loops compute as plain Python does, wherever they can be kept."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from llmzip import compiled as stage
from llmzip.compiled import compiled, compiled_for_integers


def _sum(values: np.ndarray) -> float:
    total = np.float32(0)
    for value in values:
        total += value * value
    return total


def test_sums_are_neither_reordered_nor_contracted() -> None:
    values = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    assert compiled(_sum)(values) == _sum(values)


def test_sums_of_integers_are_the_same_in_any_order() -> None:
    values = np.random.default_rng(1).integers(-127, 128, 1000).astype(np.float32)
    assert compiled_for_integers(_sum)(values) == _sum(values)


def test_without_a_folder_to_keep_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(stage, "njit", njit)
    assert compiled(_sum)(np.array([3, 4], dtype=np.float32)) == 25
