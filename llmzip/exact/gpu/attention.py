"""Attention over 8-bit keys and values, by Triton kernels; bits as `attention` defines them.

The cache is a ring: the token at position p has slot p mod C, and C is a multiple of the keys that
a program reads at a time, so that these never wrap around. No result depends on what a slot holds
that a query must not see. Weights need the largest score and the sum of all weights first, so keys
are read three times; scores never reach memory.

Shapes: S streams · T tokens, H query heads, G key heads, D head dimension, C slots.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmzip.exact.gpu.arithmetic import (
    OPTIONS,
    exp2_weight,
    ordered,
    quantised,
    reciprocal,
    round_even,
    transformed,
)

KEYS = 64  # keys that a program reads at a time
_HEAD_TILE = 2048  # numbers of heads that a program holds at a time
_LOWEST = tl.constexpr(-(2**31))


class LayerCache(NamedTuple):
    """Keys and values of one layer."""

    keys: Tensor  # int8 [S, G, C, D]
    values: Tensor  # int8 [S, G, D, C]: the products want both with the summed dimension last
    steps: Tensor  # float32 [S, G, C]: scales of keys, in steps of the table of weights
    scales: Tensor  # float32 [S, G, C]: scales of values


def new_layer(
    streams: int, groups: int, head_dim: int, slots: int, device: torch.device
) -> LayerCache:
    """An empty cache; `slots` is a multiple of KEYS."""
    assert slots % KEYS == 0
    shape = streams, groups, slots
    return LayerCache(
        torch.zeros(*shape, head_dim, dtype=torch.int8, device=device),
        torch.zeros(streams, groups, head_dim, slots, dtype=torch.int8, device=device),
        torch.zeros(shape, dtype=torch.float32, device=device),
        torch.zeros(shape, dtype=torch.float32, device=device),
    )


@triton.jit
def _heads_kernel(
    x,
    cos,
    sin,
    position,
    q,
    q_scale,
    keys,
    values,
    steps,
    scales,
    rows,
    T,
    slots,
    SCORE: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)  # heads of all rows
    place = tl.arange(0, B * C)
    column = (place // C) * (D // B) + place % C
    real = place % C < D // B
    row, head = part // (H + 2 * G), (part % (H + 2 * G)).to(tl.int32)
    inside = part < rows * (H + 2 * G)
    mask = inside[:, None] & real[None, :]
    stream, at = row // T, tl.load(position) + row % T
    own = tl.load(x + part[:, None] * D + column[None, :], mask=mask, other=0.0)
    half: tl.constexpr = D // 2
    other = (column + half) % D
    partner = tl.load(x + part[:, None] * D + other[None, :], mask=mask, other=0.0)
    angle = at[:, None] * half + (column % half)[None, :]
    c = tl.load(cos + angle, mask=mask, other=0.0)
    s = tl.load(sin + angle, mask=mask, other=0.0)
    a, b = own * c, partner * s
    turned = tl.where((column < half)[None, :], a - b, a + b)
    turned = transformed(tl.where(mask, turned, 0.0), R, B, C)
    is_value = head >= H + G
    integers, scale = quantised(tl.where(is_value[:, None], own, turned))
    is_query = inside & (head < H)
    query = row * H + head
    tl.store(q + query[:, None] * D + column[None, :], integers, mask=mask & is_query[:, None])
    tl.store(q_scale + query, scale, mask=is_query)
    slot = at % slots
    is_key = inside & (head >= H) & (head < H + G)
    group = stream * G + head - H
    key_at = (group * slots + slot)[:, None] * D + column[None, :]
    tl.store(keys + key_at, integers, mask=mask & is_key[:, None])
    tl.store(steps + group * slots + slot, scale * SCORE, mask=is_key)
    is_value = inside & is_value
    group = group - G
    value_at = (group[:, None] * D + column[None, :]) * slots + slot[:, None]
    tl.store(values + value_at, integers, mask=mask & is_value[:, None])
    tl.store(scales + group * slots + slot, scale, mask=is_value)


@triton.jit
def _keys_of(first, n, slots, at, window):
    """The slots of a block of keys, and which of them the queries at positions `at` see."""
    key = first + n
    seen = (key[None, :] <= at[:, None]) & (key[None, :] > at[:, None] - window)
    return first % slots + n, seen


@triton.jit
def _scores(q, keys, steps, slot, d, D: tl.constexpr):
    """Queries int8 [M, DP] · keys from `slot` → float32 [M, KEYS], in table steps per unit of the
    queries' scales."""
    at = keys + slot[None, :] * D + d[:, None]
    key = tl.load(at) if d.shape[0] == D else tl.load(at, mask=d[:, None] < D, other=0)
    return tl.dot(q, key, out_dtype=tl.int32).to(tl.float32) * tl.load(steps + slot)[None, :]


@triton.jit
def _attend_kernel(
    q,
    q_scale,
    keys,
    values,
    steps,
    scales,
    position,
    out,
    T,
    slots,
    window,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    stream, g = tl.program_id(1).to(tl.int64), tl.program_id(2)
    shared: tl.constexpr = H // G
    m = tl.program_id(0) * M + tl.arange(0, M)
    t = m // shared
    real = t < T
    base = tl.load(position)
    at = (base + t).to(tl.int32)  # positions of the queries
    first_token = (tl.program_id(0) * M) // shared
    last_token = min((tl.program_id(0) * M + M - 1) // shared, T - 1)
    end = (base + last_token + 1).to(tl.int32)
    start = max((base + first_token + 1).to(tl.int32) - window, 0) // N * N
    d, n = tl.arange(0, DP), tl.arange(0, N)
    query = (stream * T + tl.where(real, t, 0)) * H + g * shared + m % shared
    integers = tl.load(
        q + query[:, None] * D + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0
    )
    scale = tl.load(q_scale + query, mask=real, other=0.0)
    group = stream * G + g
    keys += group * slots * D
    values += group * slots * D
    steps += group * slots
    scales += group * slots

    best = tl.full((M,), _LOWEST, tl.int32)
    bound = tl.zeros((M,), dtype=tl.int32)
    for first in range(start, end, N):
        slot, seen = _keys_of(first, n, slots, at, window)
        z = ordered(_scores(integers, keys, steps, slot, d, D).to(tl.int32, bitcast=True))
        best = tl.maximum(best, tl.max(tl.where(seen, z, _LOWEST), 1))
        v_scale = tl.load(scales + slot).to(tl.int32, bitcast=True)
        bound = tl.maximum(bound, tl.max(tl.where(seen, v_scale[None, :], 0), 1))
    top = ordered(best).to(tl.float32, bitcast=True)

    total = tl.zeros((M,), dtype=tl.int64)
    for first in range(start, end, N):
        slot, seen = _keys_of(first, n, slots, at, window)
        z = _scores(integers, keys, steps, slot, d, D)
        weight = exp2_weight((top[:, None] - z) * scale[:, None])
        total += tl.sum(tl.where(seen, weight, 0), 1).to(tl.int64)

    largest = bound.to(tl.float32, bitcast=True)
    factor = reciprocal(total.to(tl.float32) * largest) * 65536.0
    mixed = tl.zeros((M, DP), dtype=tl.int32)
    for first in range(start, end, N):
        slot, seen = _keys_of(first, n, slots, at, window)
        z = _scores(integers, keys, steps, slot, d, D)
        weight = exp2_weight((top[:, None] - z) * scale[:, None])
        share = weight.to(tl.float32) * tl.load(scales + slot)[None, :] * factor[:, None]
        p = tl.where(seen, round_even(tl.where(seen, share, 0.0)).to(tl.int32), 0)
        value_at = values + d[None, :] * slots + slot[:, None]
        value = tl.load(value_at) if D == DP else tl.load(value_at, mask=d[None, :] < D, other=0)
        # p has 17 bits: three digits of 7 bits, whose products int8 instructions can sum
        high = tl.dot((p >> 14).to(tl.int8), value, out_dtype=tl.int32)
        middle = tl.dot(((p >> 7) & 127).to(tl.int8), value, out_dtype=tl.int32)
        low = tl.dot((p & 127).to(tl.int8), value, out_dtype=tl.int32)
        mixed += (high << 14) + (middle << 7) + low
    y = mixed.to(tl.float32) * (largest * (1.0 / 65536.0))[:, None]
    tl.store(out + query[:, None] * D + d[None, :], y, mask=real[:, None] & (d < D)[None, :])


def attention_rows(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    cache: LayerCache,
    *,
    heads: int,
    window: int,
    score_scale: float,
    block: int,
) -> Tensor:
    """Queries, keys and values float32 [S · T, (H + 2G) · D] of the T tokens from `position` int64
    [1] → float32 [S · T, H · D]. Their keys and values go to the cache, which must hold
    window - 1 + T tokens. cos, sin: float32 [positions, D / 2]. `block`: the order of transforms
    of queries and keys."""
    streams, groups, slots, head_dim = cache.keys.shape
    rows = len(x)
    count = rows // streams
    q = torch.empty(rows, heads * head_dim, dtype=torch.int8, device=x.device)
    q_scale = torch.empty(rows, heads, dtype=torch.float32, device=x.device)
    out = torch.empty(rows, heads * head_dim, dtype=torch.float32, device=x.device)
    width = block * triton.next_power_of_2(head_dim // block)
    per_program = max(1, _HEAD_TILE // width)
    parts = rows * (heads + 2 * groups)
    _heads_kernel[(triton.cdiv(parts, per_program),)](
        x, cos, sin, position, q, q_scale, *cache, rows, count, slots, SCORE=score_scale, H=heads,
        G=groups, D=head_dim, R=per_program, B=block, C=width // block, num_warps=4, **OPTIONS,
    )  # fmt: skip
    queries = heads // groups * count
    height = 16 if queries <= 16 else 32 if queries <= 32 else 64
    _attend_kernel[(triton.cdiv(queries, height), streams, groups)](
        q, q_scale, *cache, position, out, count, slots, window, H=heads, G=groups, D=head_dim,
        DP=max(32, triton.next_power_of_2(head_dim)), M=height, N=KEYS,
        num_warps=2 if height == 16 else 4, num_stages=2, **OPTIONS,
    )  # fmt: skip
    return out
