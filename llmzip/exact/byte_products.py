"""Exact matrix products of 8-bit integers with the instructions VPDPBUSD (VNNI) and SDOT (ARM).

They multiply 4 bytes by 4 others and add the products to a 32-bit integer. For VPDPBUSD one of the
two is unsigned, so weights are stored as w + 128, and sums start at -128 · Σ q of the row, which
compensates for that; SDOT takes weights as they are. See `matmul` for what the functions do.

Shapes: L = 16, 8 or 4 outputs of a block, 4 inputs of a group, R rows, K inputs, N outputs, n keys,
D head dimension.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import address, compiled_in_place, inlined_in_place
from llmzip.exact.ahead import fetch, take
from llmzip.exact.tiles import PAIR, SDOT, VPDPBUSD_256, VPDPBUSD_512, interleave, supports, tile

INSTRUCTION = (
    VPDPBUSD_512 if supports("avx512vnni") else SDOT if supports("dotprod") else VPDPBUSD_256
)
KEY_TYPE = np.uint8
_LANES, _GROUP, _MULTIPLE = INSTRUCTION.lanes, INSTRUCTION.group, INSTRUCTION.multiple
_MANY = 6 if INSTRUCTION is VPDPBUSD_256 else 8  # rows whose sums fit into 16 or 32 registers
# The widest registers take more rows, so that weights come from the second cache less often, and
# more blocks of few rows, as a sum takes some cycles, in which others begin.
_MOST, _WIDE = (12, 4) if INSTRUCTION is VPDPBUSD_512 else (_MANY, 0)
_OFFSET = INSTRUCTION.offset
_LARGEST = 65535  # of two bytes


def available() -> bool:
    """Whether numba compiles for a processor that has the instruction."""
    return any(supports(feature) for feature in ("avx512vnni", "avxvnni", "dotprod"))


def pack(weight: np.ndarray) -> np.ndarray:
    """int8 weights [..., N, K] → uint8 [..., N / L, K / 4, 4 · L]."""
    return interleave(weight.view(np.uint8) ^ np.uint8(_OFFSET), INSTRUCTION)


@compiled_in_place
def multiply_into(
    q: np.ndarray,
    weight: np.ndarray,
    buffer: np.ndarray,
    total: np.ndarray,
    first: int,
    plan: np.ndarray,
) -> None:
    """int8 [R, K] · packed weights [N / L, K / 4, 4 · L] → N columns of total int32, from `first`
    on."""
    (rows, stride), (blocks, groups, step) = q.shape, weight.shape
    for r in range(rows):
        sum = np.int32(0)
        if _OFFSET:  # known when this is compiled
            for k in range(stride):
                sum = np.int32(sum + np.int32(q[r, k]))
        buffer[r] = np.int32(-_OFFSET * sum)
    pitch, size, done = total.shape[1] * 4, groups * step, 0
    if _WIDE and (rows == 3 or rows == 4):  # queries of a key head, and few streams
        done = blocks // _WIDE * _WIDE
        for n in range(0, done * _LANES, _WIDE * _LANES):
            w = address(weight) + n // _LANES * size
            x, start, y = address(q), address(buffer), address(total) + 4 * (first + n)
            far, apart = take(plan, size, w + _WIDE * size, size)
            if rows == 3:
                _three_wide(x, stride, w, step, size, groups, start, y, pitch, far, apart)
            else:
                _four_wide(x, stride, w, step, size, groups, start, y, pitch, far, apart)
    # of the next two blocks, the first tile fetches one, and others the other
    halves = rows > _MANY and rows != _MOST and plan[1] == 0
    for n in range(done * _LANES, blocks * _LANES, _MULTIPLE):
        w = address(weight) + n // _LANES * size
        x, start, y = address(q), address(buffer), address(total) + 4 * (first + n)
        far, apart = take(plan, size, w + PAIR * size, size)
        second, left = far, rows
        if halves:
            second, apart = far + size, 0
        while _MOST > _MANY and (left == _MOST or left > 2 * _MANY):  # 16 are better two of 8
            _most(x, stride, w, step, size, groups, start, y, pitch, far, apart)
            x, start, y = x + _MOST * stride, start + 4 * _MOST, y + _MOST * pitch
            left, far = left - _MOST, second
        while left >= _MANY:
            _many(x, stride, w, step, size, groups, start, y, pitch, far, apart)
            x, start, y = x + _MANY * stride, start + 4 * _MANY, y + _MANY * pitch
            left, far = left - _MANY, second
        if left == 7 and _MANY > 7:
            _seven(x, stride, w, step, size, groups, start, y, pitch, far, apart)
        elif left == 6 and _MANY > 6:
            _six(x, stride, w, step, size, groups, start, y, pitch, far, apart)
        elif left == 5:
            _five(x, stride, w, step, size, groups, start, y, pitch, far, apart)
        elif left == 4:
            _four(x, stride, w, step, size, groups, start, y, pitch, far, apart)
        elif left == 3:
            _three(x, stride, w, step, size, groups, start, y, pitch, far, apart)
        elif left == 2:
            _two(x, stride, w, step, size, groups, start, y, pitch, far, apart)
        elif left == 1:
            _one(x, stride, w, step, size, groups, start, y, pitch, far, apart)


@compiled_in_place
def put_key(keys: np.ndarray, at: int, q: np.ndarray) -> None:
    """Store a key int8 [D] at place `at` of keys [n / L, D / 4, 4 · L]."""
    block, lane = keys[at // _LANES], at % _LANES
    for d in range(len(q)):
        block[d // _GROUP, lane * _GROUP + d % _GROUP] = np.uint8(q[d] + np.int16(_OFFSET))


@compiled_in_place
def sum_into(
    weights: np.ndarray,
    values: np.ndarray,
    buffer: np.ndarray,
    total: np.ndarray,
    plan: np.ndarray,
) -> None:
    """Weights int32 [R, n], up to 65,536 · values int8 [n / 4, D, 4] → the first half of total
    int32 [2R, D]. As weights are not bytes, the sums of their two bytes are."""
    (rows, n), dim = weights.shape, values.shape[1]
    limbs, over = buffer.view(np.uint8), np.int32(0)
    for r in range(rows):
        fetch(plan)
        high, low = limbs[2 * r * n : (2 * r + 1) * n], limbs[(2 * r + 1) * n : (2 * r + 2) * n]
        over |= _split_bytes(weights[r], high, low)
    _sum_bytes(address(limbs), n, values, total, plan)
    for r in range(rows):
        for d in range(dim):
            total[r, d] = np.int32(256) * total[2 * r, d] + total[2 * r + 1, d]
    if over > _LARGEST:
        _add_ones(weights, values, total)


@inlined_in_place
def _split_bytes(weights: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.int32:
    """Integers up to 65,536 → their two bytes; those of 65,535 for 65,536. Returns all their
    bits."""
    bits: np.int32 = np.int32(0)
    for j in range(len(weights)):
        bits = np.int32(bits | weights[j])
        weight = min(weights[j], np.int32(_LARGEST))
        high[j], low[j] = np.uint8(weight >> 8), np.uint8(weight & 255)
    return bits


@compiled_in_place
def _add_ones(weights: np.ndarray, values: np.ndarray, total: np.ndarray) -> None:
    """What 65,536 is above 65,535, to total int32 [≥ R, D]."""
    for r in range(len(weights)):
        for j in range(weights.shape[1]):
            if weights[r, j] > _LARGEST:
                value, place = values[j // _GROUP], j % _GROUP
                for d in range(len(value)):
                    total[r, d] += np.int32(value[d, place])


@compiled_in_place
def _sum_bytes(
    x: int, stride: int, values: np.ndarray, total: np.ndarray, plan: np.ndarray
) -> None:
    """Rows of bytes at an address · int8 values [n / 4, D, 4] → total int32 [R, D], R even."""
    rows, (groups, dim, _) = len(total), values.shape
    start, pitch, step, size = address(_ZEROS), dim * 4, dim * _GROUP, _LANES * _GROUP
    first, done = x, 0
    if _WIDE and rows % 6 == 0:  # of three heads
        done = dim // (_WIDE * _LANES) * (_WIDE * _LANES)
        for d in range(0, done, _WIDE * _LANES):
            v = address(values) + d * _GROUP
            far, apart = take(plan, groups * size, v, np.int64(0))
            for r in range(0, rows, 6):
                at, y = x + r * stride, address(total) + r * pitch + d * 4
                _six_wide_p(at, stride, v, step, size, groups, start, y, pitch, far, apart)
    for d in range(done, dim, _MULTIPLE):
        v = address(values) + d * _GROUP
        x, y, left = first, address(total) + d * 4, rows
        far, apart = take(plan, groups * size, v, np.int64(0))
        while left >= 8 and _MANY >= 8:
            _many_p(x, stride, v, step, size, groups, start, y, pitch, far, apart)
            x, y, left = x + 8 * stride, y + 8 * pitch, left - 8
        while left >= 6:
            _six_p(x, stride, v, step, size, groups, start, y, pitch, far, apart)
            x, y, left = x + 6 * stride, y + 6 * pitch, left - 6
        if left >= 4:
            _four_p(x, stride, v, step, size, groups, start, y, pitch, far, apart)
            x, y, left = x + 4 * stride, y + 4 * pitch, left - 4
        if left >= 2:  # there are two for each head
            _two_p(x, stride, v, step, size, groups, start, y, pitch, far, apart)


_ZEROS = np.zeros(8, dtype=np.int32)
_one, _two, _three, _four, _five, _six, _seven, _many, _most = (
    tile(INSTRUCTION, rows) for rows in (1, 2, 3, 4, 5, 6, 7, _MANY, _MOST)
)
_three_wide = tile(INSTRUCTION, 3, _WIDE or PAIR)  # two parts: next keys, next values
_four_wide = tile(INSTRUCTION, 4, _WIDE or PAIR, parts=_WIDE or PAIR)
_two_p, _four_p, _six_p, _many_p = (
    tile(INSTRUCTION, rows, signed=False) for rows in (2, 4, 6, _MANY)
)
_six_wide_p = tile(INSTRUCTION, 6, _WIDE or PAIR, signed=False)
