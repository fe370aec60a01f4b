"""Elements ↔ planes of bytes, levels of rows and columns, and what coding a plane costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from llmzip.models.packing.layout import COLUMN_LEVELS, FLOAT16, INT8, NO_LEVEL, RAW, WIDTH

_SLACK = 1.001  # a plane may take this much more for a larger shift, which codes faster


def split_planes(kind: int, content: bytes) -> np.ndarray:
    """Elements → uint8 [width, n], most significant byte first; the sign of floats is last."""
    if kind == INT8:
        return (np.frombuffer(content, np.uint8) ^ 0x80)[None]
    width = WIDTH[kind]
    x = np.frombuffer(content, f"<u{width}")
    x = x << x.dtype.type(1) | x >> x.dtype.type(8 * width - 1)
    return np.ascontiguousarray(x.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T[::-1])


def join_planes(kind: int, planes: np.ndarray) -> bytes:
    """The inverse of `split_planes`."""
    if kind == INT8:
        return bytes((planes[0] ^ 0x80).tobytes())
    width = WIDTH[kind]
    x = np.ascontiguousarray(planes[::-1].T).view(f"<u{width}")[:, 0]
    x = x >> x.dtype.type(1) | x << x.dtype.type(8 * width - 1)
    return bytes(x.astype(f"<u{width}").tobytes())


def estimate_levels(kind: int, top: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes of rows, and of columns relative to them, in eighths of octaves.

    `top` uint8 [R, C] is the first plane → int16 [R] and [C]. Any levels decode.
    """
    if kind == INT8:
        square = (top.astype(np.float32) - 128) ** 2 + np.float32(1e-3)
        row = square.mean(1)
        column = np.ones(top.shape[1])
        if levels & COLUMN_LEVELS:
            column = (square / row[:, None]).mean(0)
        row, column = 4 * np.log2(row), 4 * np.log2(column)
    else:
        unit = 1.0 if kind == FLOAT16 else 8.0
        nonzero = top > 0
        row = unit * (top.sum(1) / np.maximum(1, nonzero.sum(1)))
        column = np.zeros(top.shape[1])
        if levels & COLUMN_LEVELS:
            relative = np.where(nonzero, unit * top - row[:, None], 0)
            column = relative.sum(0) / np.maximum(1, nonzero.sum(0))
    return np.rint(row).astype("<i2"), np.rint(column).astype("<i2")


def context_and_base(
    kind: int, rows: np.ndarray, columns: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Levels [R], [C] → the context of each element, and what is subtracted from its first plane.

    Both uint8, of shapes that broadcast to [R, C].
    """
    level = rows[:, None] if columns is None else rows[:, None] + columns[None]
    if kind == INT8:
        return np.clip(level >> 1, 0, NO_LEVEL - 1).astype(np.uint8), np.zeros((1, 1), np.uint8)
    if kind == FLOAT16:
        return np.zeros((1, 1), np.uint8), level.astype(np.uint8)
    return (level >> 1 & 3).astype(np.uint8), (level >> 3).astype(np.uint8)


def histogram(context: np.ndarray | None, plane: np.ndarray) -> np.ndarray:
    """Counts of byte values, int64 [contexts, 256], of a plane uint8 [n]."""
    if context is None:
        return np.bincount(plane, minlength=256)[None]
    joint = context.astype(np.uint16) << 8 | plane
    return np.bincount(joint, minlength=(NO_LEVEL + 1) << 8).reshape(-1, 256)


def entropy(counts: np.ndarray) -> float:
    """Empirical entropy in bits of all symbols counted in [contexts, K]."""
    nonzero = counts[counts > 0].astype(np.float64)
    sums = counts.sum(1).astype(np.float64)
    sums = sums[sums > 0]
    return float((sums * np.log2(sums)).sum() - (nonzero * np.log2(nonzero)).sum())


def choose_shift(counts: np.ndarray) -> int:
    """The largest number of low bits that can be stored raw at next to no cost, or RAW."""
    n = int(counts.sum())
    costs = [entropy(counts.reshape(len(counts), -1, 1 << s).sum(2)) + s * n for s in range(8)]
    best = min(*costs, 8.0 * n)
    if best * _SLACK >= 8.0 * n:
        return RAW
    return max(s for s in range(8) if costs[s] <= best * _SLACK)


def by_context(context: np.ndarray | None, count: int) -> Iterator[tuple[int, Any]]:
    """Each context that occurs, ascending, and the index of its elements in [n]."""
    if context is None:
        yield NO_LEVEL, slice(0, count)
        return
    order = np.argsort(context, kind="stable")
    ends = np.cumsum(np.bincount(context, minlength=NO_LEVEL + 1))
    for i, (start, end) in enumerate(itertools.pairwise([0, *ends.tolist()])):
        if end > start:
            yield i, order[start:end]
