"""Rows of activations between two products → rows, by compiled loops; bits as `ops` defines them.

One loop processes a row (a token) from start to end. Every operation is the one of `ops`, under the
same name. `total`, `row_scale`, `weight_scale`: the output of a linear layer before its two scales.
`q` and the returned scale: the quantised input of the next layer. Knows nothing of layers.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled, compiled_in_place
from llmzip.exact import A8_LEVELS, ACTIVATION_FLOOR, activations, hadamard
from llmzip.exact.float_bits import float_of

_FLOOR = np.float32(ACTIVATION_FLOOR)
_ONE = np.float32(1)
_A8 = np.float32(1 / A8_LEVELS)
_NORM = np.float32(32768)
_NORM_UNIT = np.float32(1 / 32768)
_GATE_STEPS = np.float32(1 << activations.GATE_STEP_BITS)
_GATE_LIMIT = np.float32(activations.GATE_RANGE << activations.GATE_STEP_BITS)
# adding and taking away 1.5 · 2^23 rounds half to even what is below 2^22
ROUNDER = np.float32(12582912)


@compiled_in_place
def round_even(x: np.float32) -> np.float32:
    """Half to even, for |x| < 2^22."""
    rounded: np.float32 = (x + ROUNDER) - ROUNDER
    return rounded


@compiled_in_place
def absmax(x: np.ndarray) -> np.float32:
    """max |x|, floored; bit patterns are compared, which are in the same order, NaN last."""
    bits = x.view(np.int32)
    top = np.int32(0)
    for i in range(len(bits)):
        top = max(top, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
    value: np.float32 = float_of(top)
    return _FLOOR if value < _FLOOR else value


@compiled_in_place
def maximum(x: np.ndarray) -> np.float32:
    """max x of positive floats, whose bit patterns are in the same order and faster to compare."""
    bits, top = x.view(np.int32), np.int32(0)
    for i in range(len(bits)):
        top = max(top, bits[i])
    value: np.float32 = float_of(top)
    return value


@compiled_in_place
def quantise(x: np.ndarray, q: np.ndarray) -> np.float32:
    """x [K] → integers, written to q int8 [K]; returns their scale. See `ops.quantise`."""
    scale: np.float32 = absmax(x) * _A8
    for i in range(len(x)):
        q[i] = np.int8(np.int32(round_even(x[i] / scale)))
    return scale


@compiled_in_place
def norm(x: np.ndarray, weight: np.ndarray, epsilon: np.float32, y: np.ndarray) -> None:
    """x [K] → y [K]. See `ops.rms_norm`."""
    maximum = absmax(x)
    factor = (_ONE / maximum) * _NORM
    total = np.int64(0)
    for i in range(len(x)):
        grid = round_even(x[i] * factor)
        total += np.int64(np.int32(grid * grid))
    unit = maximum * _NORM_UNIT
    mean = np.float32(np.float64(total) * (1.0 / len(x))) * unit * unit
    inverse = _ONE / np.sqrt(mean + epsilon)
    for i in range(len(x)):
        y[i] = x[i] * inverse * weight[i]


@compiled_in_place
def scale(
    total: np.ndarray, row_scale: np.float32, weight_scale: np.ndarray, y: np.ndarray
) -> None:
    """total [N] → y float32 [N], after both scales. See `ops.Linear`."""
    for i in range(len(y)):
        y[i] = np.float32(total[i]) * row_scale * weight_scale[i]


@compiled_in_place
def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    """Rotary embedding of x [D] in place, cos and sin [D / 2]. See `ops.apply_rotary`."""
    half = len(cos)
    for i in range(half):
        a, b = x[i], x[half + i]
        x[i] = a * cos[i] - b * sin[i]
        x[half + i] = b * cos[i] + a * sin[i]


@compiled_in_place
def silu_row(y: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """silu(gate) · up, y [2I] → [I]. The look-up is a loop of its own, so that the others are
    vectorised; its indices wait where its results will be."""
    size, places = len(out), out.view(np.uint32)
    gate, up = y[:size], y[size:]  # numba asks whether an index that is a sum is negative
    for i in range(size):
        step = gate[i] * _GATE_STEPS
        step = step if step < _GATE_LIMIT else _GATE_LIMIT  # NaN, too
        step = step if step > -_GATE_LIMIT else -_GATE_LIMIT
        places[i] = np.uint32(np.int32(round_even(step) + _GATE_LIMIT))  # not negative
    for i in range(size):
        out[i] = table[places[i]]
    for i in range(size):
        out[i] = out[i] * gate[i] * up[i]


@compiled
def norm_rows(
    x: np.ndarray, weight: np.ndarray, epsilon: np.float32, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """x [R, K] → its norms as q int8 [R, K] and scales [R], after Hadamard transforms."""
    q = np.empty(x.shape, dtype=np.int8)
    scales = np.empty(len(x), dtype=np.float32)
    y = np.empty(x.shape[1], dtype=np.float32)
    for r in range(len(x)):
        norm(x[r], weight, epsilon, y)
        hadamard.transform_row(y, block)
        scales[r] = quantise(y, q[r])
    return q, scales


@compiled
def activation_rows(
    total: np.ndarray,
    row_scales: np.ndarray,
    weight_scale: np.ndarray,
    table: np.ndarray,
    block: int,
) -> tuple[np.ndarray, np.ndarray]:
    """total [R, 2I] → silu(gate) · up as q int8 [R, I] and scales [R]."""
    rows, width = total.shape
    q = np.empty((rows, width // 2), dtype=np.int8)
    scales = np.empty(rows, dtype=np.float32)
    y = np.empty(width, dtype=np.float32)
    out = np.empty(width // 2, dtype=np.float32)
    for r in range(rows):
        scale(total[r], row_scales[r], weight_scale, y)
        silu_row(y, table, out)
        hadamard.transform_row(out, block)
        scales[r] = quantise(out, q[r])
    return q, scales


@compiled
def add_rows(
    x: np.ndarray, total: np.ndarray, row_scales: np.ndarray, weight_scale: np.ndarray
) -> None:
    """Add total [R, N], after its scales, to x [R, N]."""
    y = np.empty(x.shape[1], dtype=np.float32)
    for r in range(len(x)):
        scale(total[r], row_scales[r], weight_scale, y)
        for i in range(len(y)):
            x[r, i] += y[i]


@compiled_in_place
def final_rows(x: np.ndarray, weight: np.ndarray, epsilon: np.float32, y: np.ndarray) -> None:
    """x [R, K] → its norms y [R, K]."""
    for r in range(len(x)):
        norm(x[r], weight, epsilon, y[r])


@compiled
def quantise_rows(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """x [R, K] → q int8 [R, K] and scales [R], after Hadamard transforms."""
    q = np.empty(x.shape, dtype=np.int8)
    scales = np.empty(len(x), dtype=np.float32)
    y = np.empty(x.shape[1], dtype=np.float32)
    for r in range(len(x)):
        for i in range(len(y)):  # assigning a slice takes a second longer to compile
            y[i] = x[r, i]
        hadamard.transform_row(y, block)
        scales[r] = quantise(y, q[r])
    return q, scales


@compiled
def scale_rows(total: np.ndarray, row_scales: np.ndarray, weight_scale: np.ndarray) -> np.ndarray:
    """total [R, N] → float32 [R, N], after both scales."""
    y = np.empty(total.shape, dtype=np.float32)
    for r in range(len(total)):
        scale(total[r], row_scales[r], weight_scale, y[r])
    return y
