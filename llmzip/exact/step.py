"""A step of a Llama model through all layers, by compiled loops: no return to Python, so that
threads do not wait for each other.

Shapes: R rows of S streams · T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmzip.compiled import compiled, compiled_in_place
from llmzip.exact import hadamard, matmul
from llmzip.exact.attention_rows import attention_rows, store_rows
from llmzip.exact.rows import (
    activation_rows,
    add_rows,
    final_rows,
    norm_rows,
    quantise_rows,
    scale,
)
from llmzip.exact.team import Member, meet

_BLOCK = 72  # rows that pass through a layer together, so that activations stay in the CPU cache,
_COLUMNS = 512  # and the head's outputs that are made together


class Shared(NamedTuple):
    """What the threads of a team write for each other: inputs and sums of a product."""

    q: np.ndarray  # int8 [R · K]
    scales: np.ndarray  # float32 [R]
    total: np.ndarray  # int32 [R · N]


def shared_arrays(rows: int, weight_scales: Sequence[np.ndarray], heads: int) -> Shared:
    """For a step of so many rows; `heads`: the inputs of the output projection."""
    rows, outputs = min(rows, _BLOCK), [scales.shape[1] for scales in weight_scales]
    inputs = max(heads, outputs[1], outputs[2] // 2)
    return Shared(
        np.empty(rows * inputs, dtype=np.int8),
        np.empty(rows, dtype=np.float32),
        np.empty(rows * max(outputs), dtype=np.int32),
    )


@compiled
def multiply(q: np.ndarray, weight: np.ndarray, total: np.ndarray, number: int, count: int) -> None:
    """int8 [R, K] · int8 [N, K]ᵀ, or packed weights → total int32 [R, N]; of its columns, those of
    thread `number` of `count`."""
    if weight.ndim == 3:  # known when this is compiled
        matmul.multiply_share(q, weight, total, number, count)
        return
    first, last = matmul.share_of(len(weight), number, count)
    for n in range(first, last):
        w = weight[n]
        for r in range(len(q)):
            x = q[r]
            sum = np.int32(0)
            for k in range(len(w)):
                sum = np.int32(sum + np.int32(x[k]) * np.int32(w[k]))
            total[r, n] = sum


@compiled_in_place
def _put(
    q: np.ndarray, scales: np.ndarray, first: int, all_q: np.ndarray, all_scales: np.ndarray
) -> None:
    """Rows q int8 [R, K] and their scales, among all, from row `first` on."""
    for r in range(len(q)):
        source, target = q[r], all_q[first + r]
        for k in range(len(source)):
            target[k] = source[k]
        all_scales[first + r] = scales[r]


@compiled
def _product(
    member: Member,
    q: np.ndarray,
    scales: np.ndarray,
    first: int,
    rows: int,
    shared: Shared,
    weight: np.ndarray,
    outputs: int,
) -> np.ndarray:
    """Each thread's rows q int8 [r, K] with their scales, from row `first` on → the sums of all
    rows, int32 [rows, outputs], of which each thread makes some columns. All wait for each
    other."""
    inputs = q.shape[1]
    all_q = shared.q[: rows * inputs].reshape(rows, inputs)
    _put(q, scales, first, all_q, shared.scales)
    meet(member)
    total = shared.total[: rows * outputs].reshape(rows, outputs)
    multiply(all_q, weight, total, member[0], member[1])
    meet(member)
    return total


@compiled
def run_step(
    member: Member,
    x: np.ndarray,
    y: np.ndarray,
    shared: Shared,
    norms: tuple[np.ndarray, np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    weight_scales: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    constants: tuple[np.float32, np.float32, np.ndarray, int, int],
    blocks: tuple[int, int, int, int, int],
    cos: np.ndarray,
    sin: np.ndarray,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    base: int,
    window: int,
) -> None:
    """All layers, with compiled products instead of torch's: x float32 [R, H] (overwritten) → y
    [R, H]; see `FusedLlama.forward`. A thread of a team makes some rows, and some columns of
    products."""
    epsilon, score_scale, gate, heads, head_dim = constants
    number, count, _ = member
    qkv, hidden, gate_up = weight_scales[0].shape[1], x.shape[1], weight_scales[2].shape[1]
    for i in range(len(norms[0])):
        keys, values, steps, scales = arrays[0][i], arrays[1][i], arrays[2][i], arrays[3][i]
        for start in range(0, len(x), _BLOCK):
            part = x[start : start + _BLOCK]
            rows = len(part)
            first, last = rows * number // count, rows * (number + 1) // count
            own, own_scales = part[first:last], shared.scales[first:last]
            q, s = norm_rows(own, norms[0][i], epsilon, blocks[0])
            total = _product(member, q, s, first, rows, shared, weights[0][i], qkv)
            store_rows(total[first:last], own_scales, weight_scales[0][i], cos, sin, keys, values,
                       steps, scales, base, score_scale, heads, head_dim, blocks[4],
                       start + first)  # fmt: skip
            meet(member)  # tokens of a stream see each other's keys
            q, s = attention_rows(total[first:last], own_scales, weight_scales[0][i], cos, sin,
                                  keys, values, steps, scales, base, window, heads, head_dim,
                                  blocks[1], blocks[4], start + first)  # fmt: skip
            total = _product(member, q, s, first, rows, shared, weights[1][i], hidden)
            add_rows(own, total[first:last], own_scales, weight_scales[1][i])
            q, s = norm_rows(own, norms[1][i], epsilon, blocks[2])
            total = _product(member, q, s, first, rows, shared, weights[2][i], gate_up)
            q, s = activation_rows(total[first:last], own_scales, weight_scales[2][i], gate,
                                   blocks[3])  # fmt: skip
            total = _product(member, q, s, first, rows, shared, weights[3][i], hidden)
            add_rows(own, total[first:last], own_scales, weight_scales[3][i])
            if len(x) > _BLOCK:  # the next rows are not shared out alike
                meet(member)
    for start in range(0, len(x), _BLOCK):
        rows = min(_BLOCK, len(x) - start)
        first, last = start + rows * number // count, start + rows * (number + 1) // count
        final_rows(x[first:last], norms[2], epsilon, y[first:last])
    meet(member)


@compiled
def logit_rows(
    member: Member,
    hidden: np.ndarray,
    block: int,
    weight: np.ndarray,
    weight_scale: np.ndarray,
    logits: np.ndarray,
) -> None:
    """Hidden states float32 [R, H] → logits float32 [R, V] of the head's weights; `block` is the
    order of Hadamard transforms. A thread of a team makes some columns."""
    number, count, _ = member
    unit = matmul.LANES if weight.ndim == 3 else 1  # outputs of a row, or block, of `weight`
    alone, one = np.int64(0), np.int64(1)  # plain numbers would be types of their own
    for first in range(0, len(hidden), _BLOCK):
        q, s = quantise_rows(hidden[first : first + _BLOCK], block)
        buffer = np.empty(len(q) * _COLUMNS, dtype=np.int32)
        start, end = matmul.share_of(len(weight_scale), number, count)
        for a in range(start, end, _COLUMNS):
            b = min(a + _COLUMNS, end)
            total = buffer[: len(q) * (b - a)].reshape(len(q), b - a)
            multiply(q, weight[a // unit : b // unit], total, alone, one)
            for r in range(len(q)):
                scale(total[r], s[r], weight_scale[a:b], logits[first + r, a:b])
    meet(member)


@compiled
def embed_rows(
    ids: np.ndarray, embedding: np.ndarray, embedding_scale: np.ndarray, block: int
) -> np.ndarray:
    """ids int64 [R] → rows of int8 [V, H] · float32 [V] as float32 [R, H], transformed back."""
    x = np.empty((len(ids), embedding.shape[1]), dtype=np.float32)
    for r in range(len(ids)):
        row, unit = embedding[ids[r]], embedding_scale[ids[r]]
        for i in range(len(row)):
            x[r, i] = np.float32(row[i]) * unit
        # a tied head stores W · H / B if the model is rotated, and H · H / B = I
        hadamard.transform_row(x[r], block)
    return x
