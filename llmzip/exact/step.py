"""A step of a Llama model through all layers, by compiled loops: no return to Python, so that
threads do not wait for each other.

Shapes: R rows of S streams · T tokens, H hidden size.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled
from llmzip.exact import hadamard, matmul
from llmzip.exact.attention_rows import attention_rows
from llmzip.exact.rows import (
    activation_rows,
    add_rows,
    final_rows,
    norm_rows,
    quantise_rows,
    scale,
)

_BLOCK = 64  # rows that pass through a layer together, so that activations stay in the CPU cache,
_HEAD_BLOCK = 12  # and through the head, which makes more of each


@compiled
def multiply(q: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """int8 [R, K] · int8 [N, K]ᵀ, or packed weights → int32 [R, N]."""
    if weight.ndim == 3:  # known when this is compiled
        return matmul.multiply(q, weight)
    total = np.empty((len(q), len(weight)), dtype=np.int32)
    for n in range(len(weight)):
        w = weight[n]
        for r in range(len(q)):
            x = q[r]
            sum = np.int32(0)
            for k in range(len(w)):
                sum = np.int32(sum + np.int32(x[k]) * np.int32(w[k]))
            total[r, n] = sum
    return total


@compiled
def run_step(
    x: np.ndarray,
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
) -> np.ndarray:
    """All layers, with compiled products instead of torch's; see `FusedLlama.forward`."""
    epsilon, score_scale, gate, heads, head_dim = constants
    for i in range(len(norms[0])):
        keys, values, steps, scales = arrays[0][i], arrays[1][i], arrays[2][i], arrays[3][i]
        for first in range(0, len(x), _BLOCK):
            part = x[first : first + _BLOCK]
            q, s = norm_rows(part, norms[0][i], epsilon, blocks[0])
            total = multiply(q, weights[0][i])
            q, s = attention_rows(total, s, weight_scales[0][i], cos, sin, keys, values, steps,
                                   scales, base, window, score_scale, heads, head_dim, blocks[1],
                                   blocks[4], first)  # fmt: skip
            add_rows(part, multiply(q, weights[1][i]), s, weight_scales[1][i])
            q, s = norm_rows(part, norms[1][i], epsilon, blocks[2])
            q, s = activation_rows(multiply(q, weights[2][i]), s, weight_scales[2][i], gate,
                               blocks[3])  # fmt: skip
            add_rows(part, multiply(q, weights[3][i]), s, weight_scales[3][i])
    return final_rows(x, norms[2], epsilon)


@compiled
def logit_rows(
    hidden: np.ndarray, block: int, weight: np.ndarray, weight_scale: np.ndarray
) -> np.ndarray:
    """Hidden states float32 [R, H] → logits float32 [R, V] of the head's weights; `block` is the
    order of Hadamard transforms."""
    logits = np.empty((len(hidden), len(weight_scale)), dtype=np.float32)
    for first in range(0, len(hidden), _HEAD_BLOCK):
        q, s = quantise_rows(hidden[first : first + _HEAD_BLOCK], block)
        total = multiply(q, weight)
        for r in range(len(q)):
            scale(total[r], s[r], weight_scale, logits[first + r])
    return logits


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
