"""A step of a Llama model through all layers, by compiled loops: no return to Python, so that
threads do not wait for each other.

Shapes: R rows of S streams · T tokens, H hidden size.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled
from llmzip.exact import matmul
from llmzip.exact.attention_rows import attention_rows
from llmzip.exact.rows import activation_rows, add_rows, final_rows, norm_rows

_BLOCK = 64  # rows that pass through a layer together, so that activations stay in the CPU cache


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
        layer_arrays = (arrays[0][i], arrays[1][i], arrays[2][i], arrays[3][i])
        for first in range(0, len(x), _BLOCK):
            part = x[first : first + _BLOCK]
            q, s = norm_rows(part, norms[0][i], epsilon, blocks[0])
            total = multiply(q, weights[0][i])
            q, s = attention_rows(total, s, weight_scales[0][i], cos, sin, layer_arrays, base,
                                   window, score_scale, heads, head_dim, blocks[1],
                                   blocks[4], first)  # fmt: skip
            add_rows(part, multiply(q, weights[1][i]), s, weight_scales[1][i])
            q, s = norm_rows(part, norms[1][i], epsilon, blocks[2])
            q, s = activation_rows(multiply(q, weights[2][i]), s, weight_scales[2][i], gate,
                               blocks[3])  # fmt: skip
            add_rows(part, multiply(q, weights[3][i]), s, weight_scales[3][i])
    return final_rows(x, norms[2], epsilon)
