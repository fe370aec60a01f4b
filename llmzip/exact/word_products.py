"""Exact matrix products of 8-bit integers with the instruction VPMADDWD (AVX2).

Weights are int8 in memory, in the order in which they are read, and become 16-bit words in
registers; the inputs become words before. Products of bytes would need fewer instructions, but
AVX2's own (VPMADDUBSW) saturates sums of two of them. See `matmul` for what the functions do.

Shapes: L = 8 outputs of a block, 2 inputs of a group, R rows, K inputs, N outputs, n keys,
D head dimension.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled
from llmzip.exact.rows import maximum
from llmzip.exact.tiles import VPMADDWD, interleave, supports, tile

INSTRUCTION = VPMADDWD
KEY_TYPE = np.int8
_LANES, _GROUP, _MULTIPLE = VPMADDWD.lanes, VPMADDWD.group, VPMADDWD.multiple
_MANY = 6  # rows whose sums fit into 16 registers, beside the weights
_LARGEST = 32767  # of a word


def available() -> bool:
    """Whether numba compiles for a processor that has the instruction."""
    return supports("avx2")


def pack(weight: np.ndarray) -> np.ndarray:
    """int8 weights [..., N, K] → int8 [..., N / 8, K / 2, 16]."""
    return interleave(weight, INSTRUCTION)


@compiled
def multiply(q: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """int8 [R, K] · packed weights [N / 8, K / 2, 16] → int32 [R, N]."""
    (rows, inputs), (blocks, groups, size) = q.shape, weight.shape
    words = np.empty((rows, inputs), dtype=np.int16)
    for r in range(rows):
        for k in range(inputs):
            words[r, k] = q[r, k]
    total = np.empty((rows, blocks * _LANES), dtype=np.int32)
    _cover(words, weight.ctypes.data, size, groups * size, groups, total)
    return total


@compiled
def _cover(words: np.ndarray, w: int, step: int, size: int, groups: int, total: np.ndarray) -> None:
    """words int16 [R, 2 · groups] · weights at the address w → total int32 [R, N], by tiles. `step`
    and `size` are the bytes between groups, and between blocks."""
    rows, outputs = total.shape
    starts = np.zeros(_MANY, dtype=np.int32)
    start, stride, pitch = starts.ctypes.data, 2 * words.shape[1], 4 * outputs
    for n in range(0, outputs, _MULTIPLE):
        at = w + (n // _LANES) * size
        x, y = words.ctypes.data, total.ctypes.data + 4 * n
        left = rows
        while left >= _MANY:
            _many(x, stride, at, step, size, groups, start, y, pitch)
            x, y, left = x + _MANY * stride, y + _MANY * pitch, left - _MANY
        if left >= 4:
            _four(x, stride, at, step, size, groups, start, y, pitch)
            x, y, left = x + 4 * stride, y + 4 * pitch, left - 4
        if left == 3:
            _three(x, stride, at, step, size, groups, start, y, pitch)
        elif left == 2:
            _two(x, stride, at, step, size, groups, start, y, pitch)
        elif left == 1:
            _one(x, stride, at, step, size, groups, start, y, pitch)


@compiled
def put_key(keys: np.ndarray, at: int, q: np.ndarray) -> None:
    """Store a key int8 [D] at place `at` of keys [n / 8, D / 2, 16]."""
    block, lane = keys[at // _LANES], at % _LANES
    for d in range(len(q)):
        block[d // _GROUP, lane * _GROUP + d % _GROUP] = q[d]


@compiled
def weighted_sum(p: np.ndarray, skipped: int, values: np.ndarray) -> np.ndarray:
    """Integers p float32 [R, n], up to 65,536 · values int8 [≥ (skipped + n) / 2, D, 2], without
    those `skipped` → int32 [R, D]."""
    (rows, n), (groups, dim, group) = p.shape, values.shape
    words = np.zeros((rows, groups * group), dtype=np.int16)
    rests = np.zeros((rows, dim), dtype=np.int32)
    for r in range(rows):
        source, row = p[r], words[r, skipped : skipped + n]
        if maximum(source) <= _LARGEST:
            for j in range(n):
                row[j] = np.int16(np.int32(source[j]))
            continue
        for j in range(n):
            weight = np.int32(source[j])
            row[j] = np.int16(min(weight, np.int32(_LARGEST)))
            if weight > _LARGEST:
                _add_rest(
                    weight - _LARGEST,
                    values[(skipped + j) // _GROUP],
                    (skipped + j) % _GROUP,
                    rests[r],
                )
    total = np.empty((rows, dim), dtype=np.int32)
    _cover(words, values.ctypes.data, dim * group, _LANES * group, groups, total)
    for r in range(rows):
        for d in range(dim):
            total[r, d] += rests[r, d]
    return total


@compiled
def _add_rest(rest: int, value: np.ndarray, place: int, sums: np.ndarray) -> None:
    """Add to sums int32 [D] what a weight is above the largest word, for a value int8 [D, 2]."""
    for d in range(len(sums)):
        sums[d] = np.int32(sums[d] + np.int32(rest) * np.int32(value[d, place]))


# The next weights are fetched by every tile, not only by the first of a pair of blocks, which alone
# waits for them: the same loop without it takes 1.3 to 1.5 times as long, for 16 rows and more.
_one, _two, _three, _four, _many = (tile(VPMADDWD, n, ahead=True) for n in (1, 2, 3, 4, _MANY))
