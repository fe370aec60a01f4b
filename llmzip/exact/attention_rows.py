"""Attention of a token, by compiled loops over 8-bit keys and values in place; bits as `attention`
defines them.

Shapes: R rows of S streams · T tokens, n keys, D head dimension, G key heads; L and g, what
`matmul` stores side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmzip.compiled import (
    address,
    compiled,
    compiled_for_integers,
    compiled_in_place,
    inlined_for_integers,
    inlined_in_place,
    prefetch_far,
)
from llmzip.exact import hadamard, matmul, tables
from llmzip.exact.ahead import LINE, fetch, fetch_rest, nothing
from llmzip.exact.float_bits import bits_of, float_of, ordered, shift_right
from llmzip.exact.rows import ROUNDER, maximum, quantise, rotate, scale

_LANES, _GROUP, _MULTIPLE = matmul.LANES, matmul.GROUP, matmul.MULTIPLE
_ONE = np.float32(1)
_P = np.float32(65536)
_P_UNIT = np.float32(1 / 65536)
_BELOW = np.float32(tables.EXP2_CUTOFF - 0.5)  # steps from here on are rounded to the cutoff
_BEYOND = np.float32(tables.EXP2_CUTOFF + (1 << tables.EXP2_STEP_BITS))  # an octave more: weight 0
_PART = 128  # keys of a loop after which more is fetched; the sum of their weights is below 2^31
_QUERIES = 12  # of some tokens of a stream, which read keys and values once, as `matmul`'s tiles do
_SHARE = 21  # of what it works on, a loop fetches one in so many; tiles fetch half of it in all
_ROUNDER_BITS = np.int32(0x4B400000)  # to which adding it adds what is rounded
_P_MASK = np.int32((1 << 17) - 1)  # of the bits of a weight, up to 2^16, to which ROUNDER is added
_UNIT_BITS = np.int32(0x4B000000)  # of 2^23, whose last places are units
_CENTER = np.float32((1 << 23) + tables.EXP2_CENTER)
_C0, _C1, _C2, _C3, _C4, _C5 = (np.float32(c) for c in tables.EXP2_POLYNOMIAL)
_C0 = _C0 + ROUNDER  # exact


class _Scratch(NamedTuple):
    """Arrays for h queries of a key head, of one token or of several, made once for many."""

    q: np.ndarray  # int8 [D]
    queries: np.ndarray  # int8 [h, D], for `matmul`; else
    float_queries: np.ndarray  # float32 [h, D]
    q_scales: np.ndarray  # float32 [h]
    bounds: np.ndarray  # float32 [h], of the scales of values
    scores: np.ndarray  # int32 [h · n]
    floats: np.ndarray  # float32 [h · n]
    buffer: np.ndarray  # int32, for `matmul`
    sums: np.ndarray  # int32 [2h, D]
    plan: np.ndarray  # int64 [4]; see `ahead`


@compiled
def attention_rows(
    total: np.ndarray,
    row_scales: np.ndarray,
    weight_scale: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    steps: np.ndarray,
    scales: np.ndarray,
    base: int,
    window: int,
    score_scale: np.float32,
    heads: int,
    head_dim: int,
    block: int,
    key_block: int,
    first: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Keys, values and their scales are one layer of a Cache's arrays, which hold `base` tokens;
    `first` is the number of the first of these rows, in the order of streams and then of tokens."""
    count = len(cos)
    q = np.empty((len(total), heads * head_dim), dtype=np.int8)
    out_scales = np.empty(len(total), dtype=np.float32)
    shared = heads // keys.shape[1]
    most = max(1, min(count, _QUERIES // shared))  # tokens of a stream at a time
    y = np.empty((most, total.shape[1]), dtype=np.float32)
    out = np.empty((most, heads * head_dim), dtype=np.float32)
    n, queries = min(window, base + count) + most + 2 * _MULTIPLE, most * shared
    scratch = _Scratch(
        np.empty(head_dim, dtype=np.int8),
        np.empty((queries, head_dim), dtype=np.int8),
        np.empty((shared, head_dim), dtype=np.float32),
        np.empty(queries, dtype=np.float32),
        np.empty(queries, dtype=np.float32),
        np.empty(queries * n, dtype=np.int32),
        np.empty(shared * n, dtype=np.float32),
        np.empty(queries * (max(n, head_dim) + 1) // 2, dtype=np.int32),
        np.empty((2 * queries, head_dim), dtype=np.int32),
        nothing(),
    )
    r = np.int64(0)
    while r < len(total):
        s, t = (first + r) // count, (first + r) % count
        some = min(most, count - t, len(total) - r)
        for i in range(some):
            scale(total[r + i], row_scales[r + i], weight_scale, y[i])
        rows, attended = y.reshape(most, -1, head_dim), out.reshape(most, heads, head_dim)
        if keys.ndim == 5:  # known when this is compiled
            _attend_by_matmul(rows[:some], cos[t:], sin[t:], keys[s], values[s], steps[s],
                              scales[s], base + t, window, score_scale, key_block, t == 0, scratch,
                              attended)  # fmt: skip
        else:
            for i in range(some):
                _attend_by_loops(rows[i], cos[t + i], sin[t + i], keys[s], values[s], steps[s],
                                 scales[s], base + t + i, window, score_scale, key_block, scratch,
                                 attended[i])  # fmt: skip
        for i in range(some):
            hadamard.transform_row(out[i], block)
            out_scales[r + i] = quantise(out[i], q[r + i])
        r += some
    return q, out_scales


@compiled_for_integers
def _scores(q: np.ndarray, keys: np.ndarray, start: int, scores: np.ndarray) -> None:
    """Queries [h, D] · keys [D, ≥ n] from `start` → integers [h, n]. Three queries at a time, as
    models tend to have, and two dimensions, so that keys and scores are seldom read again."""
    scores[:] = 0
    heads, n = scores.shape
    for d in range(0, q.shape[1] - 1, 2):
        k0, k1 = keys[d, start : start + n], keys[d + 1, start : start + n]
        for h in range(0, heads - 2, 3):
            s0, s1, s2 = scores[h], scores[h + 1], scores[h + 2]
            a0, a1, a2 = q[h, d], q[h + 1, d], q[h + 2, d]
            b0, b1, b2 = q[h, d + 1], q[h + 1, d + 1], q[h + 2, d + 1]
            for j in range(n):
                a, b = np.float32(k0[j]), np.float32(k1[j])
                s0[j] += a0 * a + b0 * b
                s1[j] += a1 * a + b1 * b
                s2[j] += a2 * a + b2 * b
        for h in range(heads - heads % 3, heads):
            s0, a0, b0 = scores[h], q[h, d], q[h, d + 1]
            for j in range(n):
                s0[j] += a0 * np.float32(k0[j]) + b0 * np.float32(k1[j])


@compiled_for_integers
def _weighted_sum(p: np.ndarray, values: np.ndarray, start: int, out: np.ndarray) -> None:
    """p [h, n] · values [D, ≥ n] from `start` → integers [h, D]."""
    heads, n = p.shape
    for d in range(out.shape[1]):
        value = values[d, start : start + n]
        for h in range(0, heads - 2, 3):
            p0, p1, p2 = p[h], p[h + 1], p[h + 2]
            t0, t1, t2 = np.float32(0), np.float32(0), np.float32(0)
            for j in range(n):
                v = np.float32(value[j])
                t0 += p0[j] * v
                t1 += p1[j] * v
                t2 += p2[j] * v
            out[h, d], out[h + 1, d], out[h + 2, d] = t0, t1, t2
        for h in range(heads - heads % 3, heads):
            p0, t0 = p[h], np.float32(0)
            for j in range(n):
                t0 += p0[j] * np.float32(value[j])
            out[h, d] = t0


@compiled_in_place
def softmax(
    scores: np.ndarray,
    steps: np.ndarray,
    scales: np.ndarray,
    q_scale: np.float32,
    bound: np.float32,
    buffer: np.ndarray,
    weights: np.ndarray,
    plan: np.ndarray,
) -> None:
    """Integer scores [n] → weights int32 [n] of values in units of `bound`: what
    `tables.attention_weights` has, times scales [n] / `bound`, for a sum of 2^16. `scores` may be
    the buffer, float32 [n]. Loops are simple, to be vectorised, and short, to fetch what is planned
    in between."""
    n, total = len(scores), np.int64(0)
    best = float_of(_top(scores, steps, buffer, plan))
    for first in range(0, n, _PART):
        fetch(plan)
        some, found = buffer[first : first + _PART], weights[first : first + _PART]
        sum = np.int32(0)
        for j in range(len(some)):  # from 0, else numba asks whether each index is negative
            step = (best - some[j]) * q_scale
            step = step if step < _BELOW else _BEYOND  # NaN, too
            weight = _exp2_weight(bits_of(step + ROUNDER))
            found[j] = weight
            sum = np.int32(sum + weight)
        total += sum
    factor = (_ONE / (np.float32(total) * bound)) * _P
    for first in range(0, n, _PART):
        fetch(plan)
        last = first + _PART
        found, units = weights[first:last], scales[first:last]
        for j in range(len(found)):
            p = np.float32(found[j]) * units[j] * factor
            found[j] = np.int32(bits_of(p + ROUNDER) & _P_MASK)  # of NaN 0


@inlined_in_place
def _top(scores: np.ndarray, steps: np.ndarray, scaled: np.ndarray, plan: np.ndarray) -> np.int32:
    """Scores [n] · steps [n] → scaled float32 [n]; the bits of the largest."""
    top: np.int32 = np.int32(-(2**31))
    for first in range(0, len(scores), _PART):
        fetch(plan)
        last = first + _PART
        some, integers, units = scaled[first:last], scores[first:last], steps[first:last]
        for j in range(len(some)):
            score = np.float32(integers[j]) * units[j]
            some[j] = score
            top = max(top, bits_of(score))
    if top < 0:  # the bits of negative floats are in the opposite order
        top = np.int32(-(2**31))
        for j in range(len(scores)):
            top = max(top, np.int32(ordered(bits_of(scaled[j]))))
        top = np.int32(ordered(top))
    return top


@inlined_for_integers
def _exp2_weight(bits: np.int32) -> np.int32:
    """round(2^16 · 2^(-t / 1024)) for t steps modulo 1024, halved per octave, of the bits of t +
    ROUNDER. `tables.EXP2_POLYNOMIAL` gives the table's integers, which a test shows. Reading the
    table takes longer than computing them."""
    x = float_of(np.int32(np.int32(bits & np.int32(1023)) | _UNIT_BITS)) - _CENTER
    y = ((((_C5 * x + _C4) * x + _C3) * x + _C2) * x + _C1) * x + _C0
    octaves = np.int32(shift_right(bits, 10) & np.int32(31))
    weight: np.int32 = shift_right(np.int32(bits_of(y) - _ROUNDER_BITS), octaves)
    return weight


@inlined_in_place
def _quantise_turned(
    row: np.ndarray, cos: np.ndarray, sin: np.ndarray, block: int, q: np.ndarray
) -> np.float32:
    """A query or key float32 [D] (overwritten), rotated and transformed → int8 q [D]; its scale."""
    rotate(row, cos, sin)
    hadamard.transform_row(row, block)
    scale: np.float32 = quantise(row, q)
    return scale


@compiled_in_place
def _attend_by_loops(
    y: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    steps: np.ndarray,
    scales: np.ndarray,
    at: int,
    window: int,
    score_scale: np.float32,
    key_block: int,
    scratch: _Scratch,
    out: np.ndarray,
) -> None:
    """One token's queries, keys and values y [heads + 2G, D] → attention output [heads, D].
    Its key is written to offset `at` of keys [G, D, ≥ n] …, and sees those of the window."""
    start = max(0, at + 1 - window)
    q, queries, q_scales = scratch.q, scratch.float_queries, scratch.q_scales
    groups, (shared, head_dim) = len(keys), queries.shape
    heads, n = groups * shared, at + 1 - start
    weights = scratch.scores[: shared * n].reshape(shared, n)
    p = scratch.floats[: shared * n].reshape(shared, n)
    for g in range(groups):
        steps[g, at] = _quantise_turned(y[heads + g], cos, sin, key_block, q) * score_scale
        for d in range(head_dim):
            keys[g, d, at] = q[d]
        scales[g, at] = quantise(y[heads + groups + g], q)
        for d in range(head_dim):
            values[g, d, at] = q[d]
        bound = maximum(scales[g, start : at + 1])
        for h in range(shared):
            q_scales[h] = _quantise_turned(y[g * shared + h], cos, sin, key_block, q)
            for d in range(head_dim):
                queries[h, d] = np.float32(q[d])
        _scores(queries, keys[g], start, p)
        for h in range(shared):
            softmax(p[h], steps[g, start : at + 1], scales[g, start : at + 1], q_scales[h], bound,
                    p[h], weights[h], scratch.plan)  # fmt: skip
            for j in range(n):
                p[h, j] = np.float32(weights[h, j])
        part = out[g * shared : (g + 1) * shared]
        _weighted_sum(p, values[g], start, part)
        for h in range(shared):
            for d in range(head_dim):
                part[h, d] *= bound * _P_UNIT


@inlined_in_place
def _plan_next(
    keys: np.ndarray,
    values: np.ndarray,
    steps: np.ndarray,
    scales: np.ndarray,
    first: int,
    width: int,
    plan: np.ndarray,
) -> None:
    """Plan to fetch `width` keys and values of the next head from place `first` on, which lie
    behind this head's; after the last, they are the next stream's."""
    head_dim = values.shape[1]
    plan[0] = address(keys) + keys.size + first * head_dim
    plan[1] = plan[0] + width * head_dim
    plan[2] = address(values) - address(keys)
    plan[3] = head_dim * _PART // _SHARE // LINE
    for i in range(len(steps) + first, len(steps) + first + width, LINE // 4):
        prefetch_far(address(steps) + 4 * i)
        prefetch_far(address(scales) + 4 * i)


@compiled_in_place
def _attend_by_matmul(
    y: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    steps: np.ndarray,
    scales: np.ndarray,
    at: int,
    window: int,
    score_scale: np.float32,
    key_block: int,
    is_first: bool,
    scratch: _Scratch,
    out: np.ndarray,
) -> None:
    """The same for T tokens of a stream, y [T, heads + 2G, D], with packed keys [G, n / L, D / g,
    L · g] and values [G, n / g, D, g], which are read once for all of them. Meanwhile the first of
    a stream's tokens fetch what the next key head reads; others find it in the cache."""
    q, plan = scratch.q, scratch.plan
    count, groups, head_dim = len(y), len(keys), len(scratch.q)
    shared = out.shape[1] // groups
    first = max(0, at + 1 - window) // _MULTIPLE * _MULTIPLE
    width = (at + count - first + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE
    queries, sums = scratch.queries[: count * shared], scratch.sums[: 2 * count * shared]
    scores = scratch.scores[: count * shared * width].reshape(count * shared, width)
    for g in range(groups):
        for t in range(count):
            row, place = y[t], at + t
            key_scale = _quantise_turned(row[groups * shared + g], cos[t], sin[t], key_block, q)
            steps[g, place] = key_scale * score_scale
            matmul.put_key(keys[g], place, q)
            scales[g, place] = quantise(row[groups * shared + groups + g], q)
            for d in range(head_dim):
                values[g, place // _GROUP, d, place % _GROUP] = q[d]
        if is_first:
            _plan_next(keys[g], values[g], steps[g], scales[g], first, width, plan)
        for i in range(len(queries)):
            t, h = i // shared, i % shared
            row = y[t, g * shared + h]
            scratch.q_scales[i] = _quantise_turned(row, cos[t], sin[t], key_block, queries[i])
            fetch(plan)
        near = keys[g, first // _LANES : (first + width) // _LANES]
        matmul.multiply_into(queries, near, scratch.buffer, scores, np.int64(0), plan)
        for i in range(len(queries)):  # weights take the place of scores
            end = at + i // shared + 1
            start = max(0, end - window)
            row, n = scores[i], end - start
            seen = row[start - first : end - first]
            bound = maximum(scales[g, start:end])
            softmax(seen, steps[g, start:end], scales[g, start:end], scratch.q_scales[i], bound,
                    scratch.floats[:n], seen, plan)  # fmt: skip
            for j in range(start - first):
                row[j] = 0
            for j in range(end - first, width):
                row[j] = 0
            scratch.bounds[i] = bound
        near_values = values[g, first // _GROUP : (first + width) // _GROUP]
        matmul.sum_into(scores, near_values, scratch.buffer, sums, plan)
        fetch_rest(plan)
        for i in range(len(queries)):
            unit = scratch.bounds[i] * _P_UNIT
            for d in range(head_dim):
                out[i // shared, g * shared + i % shared, d] = np.float32(sums[i, d]) * unit
