"""Integer scores → integer weights of attention, by compiled loops; bits as `attention` defines
them.

Exponentials are computed: reading those of `tables` takes longer.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled_in_place, inlined_for_integers, inlined_in_place
from llmzip.exact import tables
from llmzip.exact.ahead import fetch
from llmzip.exact.float_bits import bits_of, float_of, ordered, shift_right
from llmzip.exact.rows import ROUNDER

PART = 128  # keys of a loop after which more is fetched; the sum of their weights is below 2^31
_ONE = np.float32(1)
_P = np.float32(65536)
_BELOW = np.float32(tables.EXP2_CUTOFF - 0.5)  # steps from here on are rounded to the cutoff
_BEYOND = np.float32(tables.EXP2_CUTOFF + (1 << tables.EXP2_STEP_BITS))  # an octave more: weight 0
_ROUNDER_BITS = np.int32(0x4B400000)  # to which adding it adds what is rounded
_P_MASK = np.int32((1 << 17) - 1)  # of the bits of a weight, up to 2^16, to which ROUNDER is added
_UNIT_BITS = np.int32(0x4B000000)  # of 2^23, whose last places are units
_CENTER = np.float32((1 << 23) + tables.EXP2_CENTER)
_C0, _C1, _C2, _C3, _C4, _C5 = (np.float32(c) for c in tables.EXP2_POLYNOMIAL)
_ROUNDED_C0 = _C0 + ROUNDER  # exact


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
    for first in range(0, n, PART):
        fetch(plan)
        some, found = buffer[first : first + PART], weights[first : first + PART]
        sum = np.int32(0)
        for j in range(len(some)):  # from 0, else numba asks whether each index is negative
            step = (best - some[j]) * q_scale
            step = step if step < _BELOW else _BEYOND  # NaN, too
            weight = _exp2_weight(bits_of(step + ROUNDER))
            found[j] = weight
            sum = np.int32(sum + weight)
        total += sum
    factor = (_ONE / (np.float32(total) * bound)) * _P
    for first in range(0, n, PART):
        fetch(plan)
        last = first + PART
        found, units = weights[first:last], scales[first:last]
        for j in range(len(found)):
            p = np.float32(found[j]) * units[j] * factor
            found[j] = np.int32(bits_of(p + ROUNDER) & _P_MASK)  # of NaN 0


@inlined_in_place
def _top(scores: np.ndarray, steps: np.ndarray, scaled: np.ndarray, plan: np.ndarray) -> np.int32:
    """Scores [n] · steps [n] → scaled float32 [n]; the bits of the largest."""
    top: np.int32 = np.int32(-(2**31))
    for first in range(0, len(scores), PART):
        fetch(plan)
        last = first + PART
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
    ROUNDER. `tables.EXP2_POLYNOMIAL` gives the table's integers, which a test shows."""
    x = float_of(np.int32(np.int32(bits & np.int32(1023)) | _UNIT_BITS)) - _CENTER
    y = ((((_C5 * x + _C4) * x + _C3) * x + _C2) * x + _C1) * x + _ROUNDED_C0
    octaves = np.int32(shift_right(bits, 10) & np.int32(31))
    weight: np.int32 = shift_right(np.int32(bits_of(y) - _ROUNDER_BITS), octaves)
    return weight
