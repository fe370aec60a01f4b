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
    inlined_in_place,
    prefetch_far,
)
from llmzip.exact import hadamard, matmul
from llmzip.exact.ahead import LINE, fetch, fetch_rest, nothing
from llmzip.exact.rows import maximum, quantise, rotate, scale
from llmzip.exact.softmax import PART, softmax

_LANES, _GROUP, _MULTIPLE = matmul.LANES, matmul.GROUP, matmul.MULTIPLE
_P_UNIT = np.float32(1 / 65536)
_QUERIES = 12  # of some tokens of a stream, which read keys and values once, as `matmul`'s tiles do
_SHARE = 21  # of what it works on, a loop fetches one in so many; tiles fetch half of it in all


class _Scratch(NamedTuple):
    """Arrays for h queries of a key head, of T tokens, made once for many."""

    q: np.ndarray  # int8 [D]
    queries: np.ndarray  # int8 [h, D], for `matmul`; else
    float_queries: np.ndarray  # float32 [h, D]
    q_scales: np.ndarray  # float32 [h]
    bounds: np.ndarray  # float32 [T], of the scales of values
    scores: np.ndarray  # int32 [h · n]
    floats: np.ndarray  # float32 [h · n]
    buffer: np.ndarray  # int32, for `matmul`
    sums: np.ndarray  # int32 [2h, D]
    plan: np.ndarray  # int64 [4]; see `ahead`


@compiled
def store_rows(
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
    score_scale: np.float32,
    heads: int,
    head_dim: int,
    key_block: int,
    first: int,
) -> None:
    """Keys and values of rows into one layer of a Cache's arrays, before `attention_rows`. The
    arrays hold `base` tokens; `first` is the number of the first of these rows, in the order of
    streams and then of tokens."""
    count, groups, queries = len(cos), keys.shape[1], heads * head_dim
    y = np.empty(total.shape[1] - queries, dtype=np.float32)
    q = np.empty(head_dim, dtype=np.int8)
    rows = y.reshape(2 * groups, head_dim)
    for r in range(len(total)):
        s, t = (first + r) // count, (first + r) % count
        at = base + t
        scale(total[r, queries:], row_scales[r], weight_scale[queries:], y)
        for g in range(groups):
            key, value = keys[s, g], values[s, g]
            steps[s, g, at] = score_scale * _quantise_turned(rows[g], cos[t], sin[t], key_block, q)
            if keys.ndim == 5:  # known when this is compiled
                matmul.put_key(key, at, q)
            else:
                for d in range(head_dim):
                    key[d, at] = q[d]
            scales[s, g, at] = quantise(rows[groups + g], q)
            if keys.ndim == 5:
                some = value[at // _GROUP]
                for d in range(head_dim):
                    some[d, at % _GROUP] = q[d]
            else:
                for d in range(head_dim):
                    value[d, at] = q[d]


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
    heads: int,
    head_dim: int,
    block: int,
    key_block: int,
    first: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The queries of rows, whose keys and values are stored, as those before them → attention, as
    q int8 [R, heads · D] and scales [R]."""
    count = len(cos)
    q = np.empty((len(total), heads * head_dim), dtype=np.int8)
    out_scales = np.empty(len(total), dtype=np.float32)
    shared = heads // keys.shape[1]
    most = max(1, min(count, _QUERIES // shared))  # tokens of a stream at a time
    y = np.empty((most, heads * head_dim), dtype=np.float32)
    out = np.empty((most, heads * head_dim), dtype=np.float32)
    n, queries = min(window, base + count) + most + 2 * _MULTIPLE, most * shared
    scratch = _Scratch(
        np.empty(head_dim, dtype=np.int8),
        np.empty((queries, head_dim), dtype=np.int8),
        np.empty((shared, head_dim), dtype=np.float32),
        np.empty(queries, dtype=np.float32),
        np.empty(most, dtype=np.float32),
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
            scale(total[r + i, : y.shape[1]], row_scales[r + i], weight_scale[: y.shape[1]], y[i])
        rows, attended = y.reshape(most, heads, head_dim), out.reshape(most, heads, head_dim)
        if keys.ndim == 5:  # known when this is compiled
            _attend_by_matmul(rows[:some], cos[t:], sin[t:], keys[s], values[s], steps[s],
                              scales[s], base + t, window, key_block, t == 0, scratch,
                              attended)  # fmt: skip
        else:
            for i in range(some):
                _attend_by_loops(rows[i], cos[t + i], sin[t + i], keys[s], values[s], steps[s],
                                 scales[s], base + t + i, window, key_block, scratch,
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
    key_block: int,
    scratch: _Scratch,
    out: np.ndarray,
) -> None:
    """One token's queries y [heads, D] → attention output [heads, D]. Its key is at place `at` of
    keys [G, D, ≥ n] …, and it sees those of the window."""
    start = max(0, at + 1 - window)
    q, queries, q_scales = scratch.q, scratch.float_queries, scratch.q_scales
    groups, (shared, head_dim) = len(keys), queries.shape
    n = at + 1 - start
    weights = scratch.scores[: shared * n].reshape(shared, n)
    p = scratch.floats[: shared * n].reshape(shared, n)
    for g in range(groups):
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
    plan[3] = head_dim * PART // _SHARE // LINE
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
    key_block: int,
    is_first: bool,
    scratch: _Scratch,
    out: np.ndarray,
) -> None:
    """The same for T tokens of a stream, y [T, heads, D], the first at place `at`, with packed keys
    [G, n / L, D / g, L · g] and values [G, n / g, D, g], which are read once for all of them.
    Meanwhile the first of a stream's tokens fetch what the next key head reads; others find it in
    the cache."""
    plan, groups, (count, heads, head_dim) = scratch.plan, len(keys), y.shape
    shared = heads // groups
    first = max(0, at + 1 - window) // _MULTIPLE * _MULTIPLE
    width = (at + count - first + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE
    queries, sums = scratch.queries[: count * shared], scratch.sums[: 2 * count * shared]
    scores = scratch.scores[: count * shared * width].reshape(count * shared, width)
    for g in range(groups):
        if is_first:
            _plan_next(keys[g], values[g], steps[g], scales[g], first, width, plan)
        for t in range(count):
            for h in range(shared):
                row, i = y[t, g * shared + h], t * shared + h
                scratch.q_scales[i] = _quantise_turned(row, cos[t], sin[t], key_block, queries[i])
                fetch(plan)
        near = keys[g, first // _LANES : (first + width) // _LANES]
        matmul.multiply_into(queries, near, scratch.buffer, scores, np.int64(0), plan)
        for t in range(count):
            end = at + t + 1
            start = max(0, end - window)
            own_steps, own_scales = steps[g, start:end], scales[g, start:end]
            bound = maximum(own_scales)
            scratch.bounds[t] = bound
            for i in range(t * shared, (t + 1) * shared):  # weights take the place of scores
                row = scores[i]
                seen = row[start - first : end - first]
                softmax(seen, own_steps, own_scales, scratch.q_scales[i], bound,
                        scratch.floats[: end - start], seen, plan)  # fmt: skip
                for j in range(start - first):
                    row[j] = 0
                for j in range(end - first, width):
                    row[j] = 0
        near_values = values[g, first // _GROUP : (first + width) // _GROUP]
        matmul.sum_into(scores, near_values, scratch.buffer, sums, plan)
        fetch_rest(plan)
        for t in range(count):
            unit = scratch.bounds[t] * _P_UNIT
            for h in range(shared):
                for d in range(head_dim):
                    out[t, g * shared + h, d] = np.float32(sums[t * shared + h, d]) * unit
