"""Exact matrix products of 8-bit integers with the instruction VPMADDWD (AVX2).

Weights are int8 in memory, in the order in which they are read, and become 16-bit words in
registers; the inputs become words before. Products of bytes would need fewer instructions, but
AVX2's own (VPMADDUBSW) saturates sums of two of them. See `matmul` for what the functions do.

Shapes: L = 8 outputs of a block, 2 inputs of a group, R rows, K inputs, N outputs, n keys,
D head dimension.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import address, compiled_in_place
from llmzip.exact.ahead import fetch, take
from llmzip.exact.tiles import PAIR, VPMADDWD, interleave, supports, tile

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


@compiled_in_place
def multiply_into(
    q: np.ndarray,
    weight: np.ndarray,
    buffer: np.ndarray,
    total: np.ndarray,
    first: int,
    plan: np.ndarray,
) -> None:
    """int8 [R, K] · packed weights [N / 8, K / 2, 16] → N columns of total int32, from `first`
    on."""
    (rows, inputs), (blocks, groups, size) = q.shape, weight.shape
    words = buffer.view(np.int16)
    for r in range(rows):
        row = words[r * inputs : (r + 1) * inputs]
        for k in range(inputs):
            row[k] = q[r, k]
    w, outputs = address(weight), blocks * _LANES
    _cover(address(words), rows, w, size, groups * size, groups, total, first, outputs, plan)


@compiled_in_place
def _cover(
    words: int,
    rows: int,
    w: int,
    step: int,
    size: int,
    groups: int,
    total: np.ndarray,
    first: int,
    outputs: int,
    plan: np.ndarray,
) -> None:
    """Words [R, 2 · groups] · weights, both at addresses → columns of total int32 [≥ R, …], by
    tiles. `step` and `size` are the bytes between groups, and between blocks."""
    start, stride, pitch = address(_ZEROS), 4 * groups, 4 * total.shape[1]
    for n in range(0, outputs, _MULTIPLE):
        at = w + (n // _LANES) * size
        x, y = words, address(total) + 4 * (first + n)
        far, apart = take(plan, groups * _LANES * _GROUP, at + PAIR * size, size)
        left = rows
        while left >= _MANY:
            _many(x, stride, at, step, size, groups, start, y, pitch, far, apart)
            x, y, left = x + _MANY * stride, y + _MANY * pitch, left - _MANY
        if left >= 4:
            _four(x, stride, at, step, size, groups, start, y, pitch, far, apart)
            x, y, left = x + 4 * stride, y + 4 * pitch, left - 4
        if left == 3:
            _three(x, stride, at, step, size, groups, start, y, pitch, far, apart)
        elif left == 2:
            _two(x, stride, at, step, size, groups, start, y, pitch, far, apart)
        elif left == 1:
            _one(x, stride, at, step, size, groups, start, y, pitch, far, apart)


@compiled_in_place
def put_key(keys: np.ndarray, at: int, q: np.ndarray) -> None:
    """Store a key int8 [D] at place `at` of keys [n / 8, D / 2, 16]."""
    block, lane = keys[at // _LANES], at % _LANES
    for d in range(len(q)):
        block[d // _GROUP, lane * _GROUP + d % _GROUP] = q[d]


@compiled_in_place
def sum_into(
    weights: np.ndarray,
    values: np.ndarray,
    buffer: np.ndarray,
    total: np.ndarray,
    plan: np.ndarray,
) -> None:
    """Weights int32 [R, n], up to 65,536 · values int8 [n / 2, D, 2] → the first half of total
    int32 [2R, D]."""
    (rows, n), (groups, dim, group) = weights.shape, values.shape
    words, bits = buffer.view(np.int16), np.int32(0)
    for r in range(rows):
        fetch(plan)
        source, row = weights[r], words[r * n : (r + 1) * n]
        for j in range(n):
            bits = np.int32(bits | source[j])
            row[j] = np.int16(min(source[j], np.int32(_LARGEST)))
    _cover(address(words), rows, address(values), dim * group, _LANES * group, groups, total,
           0, dim, plan)  # fmt: skip
    if bits > _LARGEST:
        _add_rests(weights, values, total)


@compiled_in_place
def _add_rests(weights: np.ndarray, values: np.ndarray, total: np.ndarray) -> None:
    """What weights are above the largest word, to total int32 [≥ R, D]."""
    for r in range(len(weights)):
        for j in range(weights.shape[1]):
            rest = np.int32(weights[r, j] - np.int32(_LARGEST))
            if rest > 0:
                value, place = values[j // _GROUP], j % _GROUP
                for d in range(len(value)):
                    total[r, d] = np.int32(total[r, d] + np.int32(rest * value[d, place]))


_ZEROS = np.zeros(_MANY, dtype=np.int32)
# The next weights are fetched by every tile, not only by the first of a pair of blocks, which alone
# waits for them: the same loop without it takes 1.3 to 1.5 times as long, for 16 rows and more.
_one, _two, _three, _four, _many = (tile(VPMADDWD, n) for n in (1, 2, 3, 4, _MANY))
