"""Exact matrix products of 8-bit integers with the instruction VPDPBUSD (VNNI).

VPDPBUSD multiplies 4 unsigned bytes by 4 signed ones and adds the products to a 32-bit integer.
Weights are stored as w + 128, in the order in which they are read; sums start at -128 · Σ q of the
row, which compensates for that. See `matmul` for what the functions do.

Shapes: L = 16 or 8 outputs of a block, 4 inputs of a group, R rows, K inputs, N outputs, n keys,
D head dimension.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled
from llmzip.exact.tiles import VPDPBUSD_256, VPDPBUSD_512, interleave, supports, tile

INSTRUCTION = VPDPBUSD_512 if supports("avx512vnni") else VPDPBUSD_256
KEY_TYPE = np.uint8
_LANES, _GROUP, _MULTIPLE = INSTRUCTION.lanes, INSTRUCTION.group, INSTRUCTION.multiple
_MANY = 8 if INSTRUCTION is VPDPBUSD_512 else 6  # rows whose sums fit into 32 or 16 registers
_OFFSET = 128


def available() -> bool:
    """Whether numba compiles for a processor that has the instruction."""
    return supports("avx512vnni") or supports("avxvnni")


def pack(weight: np.ndarray) -> np.ndarray:
    """int8 weights [..., N, K] → uint8 [..., N / L, K / 4, 4 · L]."""
    return interleave(weight.view(np.uint8) ^ np.uint8(_OFFSET), INSTRUCTION)


@compiled
def multiply(q: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """int8 [R, K] · packed weights [N / L, K / 4, 4 · L] → int32 [R, N]."""
    (rows, stride), (blocks, groups, step) = q.shape, weight.shape
    total = np.empty((rows, blocks * _LANES), dtype=np.int32)
    starts = np.empty(rows, dtype=np.int32)
    for r in range(rows):
        sum = np.int32(0)
        for k in range(stride):
            sum = np.int32(sum + np.int32(q[r, k]))
        starts[r] = np.int32(-_OFFSET * sum)
    pitch, size = blocks * _LANES * 4, groups * step
    for n in range(0, blocks * _LANES, _MULTIPLE):
        w = weight.ctypes.data + n // _LANES * size
        x, start, y = q.ctypes.data, starts.ctypes.data, total.ctypes.data + 4 * n
        left = rows
        while left >= _MANY:
            _many(x, stride, w, step, size, groups, start, y, pitch)
            x, start, y = x + _MANY * stride, start + 4 * _MANY, y + _MANY * pitch
            left -= _MANY
        if left >= 4:
            _four(x, stride, w, step, size, groups, start, y, pitch)
            x, start, y, left = x + 4 * stride, start + 16, y + 4 * pitch, left - 4
        if left == 3:
            _three(x, stride, w, step, size, groups, start, y, pitch)
        elif left == 2:
            _two(x, stride, w, step, size, groups, start, y, pitch)
        elif left == 1:
            _one(x, stride, w, step, size, groups, start, y, pitch)
    return total


@compiled
def put_key(keys: np.ndarray, at: int, q: np.ndarray) -> None:
    """Store a key int8 [D] at place `at` of keys [n / L, D / 4, 4 · L]."""
    block, lane = keys[at // _LANES], at % _LANES
    for d in range(len(q)):
        block[d // _GROUP, lane * _GROUP + d % _GROUP] = np.uint8(q[d] + np.int16(_OFFSET))


@compiled
def weighted_sum(p: np.ndarray, skipped: int, values: np.ndarray) -> np.ndarray:
    """Integers p float32 [R, n], up to 65,536 · values int8 [≥ (skipped + n) / 4, D, 4], without
    those `skipped` → int32 [R, D]. As weights are not bytes, the sums of their two bytes are."""
    rows, (groups, dim, group) = len(p), values.shape
    limbs = np.zeros((2 * rows, groups * group), dtype=np.uint8)
    over = np.empty(rows, dtype=np.int64)
    for r in range(rows):
        over[r] = _split_bytes(p[r], limbs[2 * r, skipped:], limbs[2 * r + 1, skipped:])
    sums = _sum_bytes(limbs, values)
    total = np.empty((rows, dim), dtype=np.int32)
    for r in range(rows):
        for d in range(dim):
            total[r, d] = np.int32(256) * sums[2 * r, d] + sums[2 * r + 1, d]
        if over[r] >= 0:
            value, place = values[(skipped + over[r]) // _GROUP], (skipped + over[r]) % _GROUP
            for d in range(dim):
                total[r, d] += np.int32(value[d, place])
    return total


@compiled
def _split_bytes(p: np.ndarray, high: np.ndarray, low: np.ndarray) -> int:
    """Integers up to 65,536 → their two bytes. Returns the index of 65,536, which is split as
    65,535, or -1. It occurs at most once, as the sum of all is about 65,536."""
    over = np.int32(0)
    for j in range(len(p)):
        value = np.int32(p[j])
        over |= value >> 16
        value = min(value, np.int32(65535))
        high[j], low[j] = np.uint8(value >> 8), np.uint8(value & 255)
    if over:
        for j in range(len(p)):
            if p[j] > np.float32(65535):
                return j
    return -1


@compiled
def _sum_bytes(p: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 [R, n], R even · int8 values [n / 4, D, 4] → int32 [R, D]."""
    (rows, stride), (groups, dim, _) = p.shape, values.shape
    total = np.empty((rows, dim), dtype=np.int32)
    starts = np.zeros(8, dtype=np.int32)
    start, pitch, step, size = starts.ctypes.data, dim * 4, dim * _GROUP, _LANES * _GROUP
    for d in range(0, dim, _MULTIPLE):
        v = values.ctypes.data + d * _GROUP
        x, y, left = p.ctypes.data, total.ctypes.data + d * 4, rows
        while left >= 8 and _MANY >= 8:
            _many_p(x, stride, v, step, size, groups, start, y, pitch)
            x, y, left = x + 8 * stride, y + 8 * pitch, left - 8
        while left >= 6:
            _six_p(x, stride, v, step, size, groups, start, y, pitch)
            x, y, left = x + 6 * stride, y + 6 * pitch, left - 6
        if left >= 4:
            _four_p(x, stride, v, step, size, groups, start, y, pitch)
            x, y, left = x + 4 * stride, y + 4 * pitch, left - 4
        if left >= 2:  # there are two for each head
            _two_p(x, stride, v, step, size, groups, start, y, pitch)
    return total


_one, _two, _three, _four, _many = (tile(INSTRUCTION, rows) for rows in (1, 2, 3, 4, _MANY))
_two_p, _four_p, _six_p, _many_p = (
    tile(INSTRUCTION, rows, signed=False) for rows in (2, 4, 6, _MANY)
)
