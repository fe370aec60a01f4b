"""Constants → tables of float32 / int32, computed without libm.

Every entry comes from Python integers or from `decimal` (whose ln and exp are correctly
rounded), so that a table is the same on every machine. Knows nothing of models.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
import torch

_DIGITS = 60  # of decimal working precision; tables need at most 16
_SHIFT = 160  # fractional bits of the integer sines

EXP2_STEP_BITS = 10  # attention: scores are rounded to 1/1024 octave
EXP2_OCTAVES = 16  # and weights die out 16 octaves below the maximum
EXP2_UNIT_BITS = 16  # the largest weight is 2^16
EXP2_CUTOFF = EXP2_OCTAVES << EXP2_STEP_BITS

SIGMOID_STEP_BITS = 10  # the sigmoid is tabulated at multiples of 1/1024
SIGMOID_RANGE = 16  # between -16 and 16


def _decimal_pow2(exponent: Decimal) -> Decimal:
    return (exponent * Decimal(2).ln()).exp()


def nearest_float32(value: Decimal) -> float:
    """The float32 nearest to `value`, as a Python float."""
    return float(np.float32(float(value)))


@cache
def log2e_times(scale: int) -> float:
    """log2(e) · `scale`, rounded to float32."""
    with localcontext() as context:
        context.prec = _DIGITS
        return nearest_float32(scale / Decimal(2).ln())


@cache
def score_scale(head_dim: int) -> float:
    """log2(e) / sqrt(head_dim) · 2^10: from a raw attention score to table steps, float32."""
    with localcontext() as context:
        context.prec = _DIGITS
        return nearest_float32(
            Decimal(1 << EXP2_STEP_BITS) / (Decimal(2).ln() * Decimal(head_dim).sqrt())
        )


@cache
def exp2_mantissas(step_bits: int, unit_bits: int) -> np.ndarray:
    """round(2^unit_bits · 2^(-i / 2^step_bits)) for i = 0 … 2^step_bits - 1, int64."""
    with localcontext() as context:
        context.prec = _DIGITS
        steps = 1 << step_bits
        return np.array(
            [
                int((_decimal_pow2(unit_bits - Decimal(i) / steps)).to_integral_value())
                for i in range(steps)
            ],
            dtype=np.int64,
        )


def exp2_table(step_bits: int, unit_bits: int, octaves: int) -> np.ndarray:
    """M[t mod 2^step_bits] >> (t div 2^step_bits) for all t below `octaves` octaves, int64."""
    mantissas = exp2_mantissas(step_bits, unit_bits)
    return np.concatenate([mantissas >> octave for octave in range(octaves)])


@cache
def attention_weights() -> torch.Tensor:
    """int32 [EXP2_CUTOFF + 1]: the weight of a key `t` steps below the best; the last is 0."""
    table = exp2_table(EXP2_STEP_BITS, EXP2_UNIT_BITS, EXP2_OCTAVES)
    return torch.from_numpy(np.append(table, 0).astype(np.int32))


@cache
def sigmoid_table() -> torch.Tensor:
    """float32: 1 / (1 + e^-x) at x = i / 1024, i = -16·1024 … 16·1024; 0 and 1 at the ends."""
    with localcontext() as context:
        context.prec = 40
        reach = SIGMOID_RANGE << SIGMOID_STEP_BITS
        # e^-x at the i-th step is decay^i: one product instead of one exp
        decay = (-Decimal(1) / (1 << SIGMOID_STEP_BITS)).exp()
        power = Decimal(1)
        positive = np.ones(reach + 1, dtype=np.float32)
        negative = np.zeros(reach + 1, dtype=np.float32)
        for i in range(reach):
            share = 1 / (1 + power)
            positive[i] = np.float32(float(share))
            negative[i] = np.float32(float(power * share))
            power *= decay
    return torch.from_numpy(np.concatenate([negative[:0:-1], positive]))


def _fixed_cos_sin(angle: int) -> tuple[int, int]:
    """cos and sin of angle / 2^_SHIFT (0 ≤ angle < 2) by Taylor series in integers."""
    cos, sin, term, k = 0, 0, 1 << _SHIFT, 0
    while term:
        sign = -1 if k & 2 else 1
        if k & 1:
            sin += sign * term
        else:
            cos += sign * term
        k += 1
        term = (term * angle >> _SHIFT) // k
    return cos, sin


class RotaryTable:
    """cos and sin of position · theta^(-2i / dim), float32, for as many positions as asked for.

    Angles are added by multiplying unit complex numbers in integers: position =
    a·4096 + b·64 + c takes three factors of 30 fractional bits from three small tables,
    which themselves come from integers of 160 bits.
    """

    _BITS = 30

    def __init__(self, head_dim: int, theta: float) -> None:
        self._frequencies = []
        with localcontext() as context:
            context.prec = _DIGITS
            log_theta = Decimal(theta).ln()
            for i in range(head_dim // 2):
                frequency = (-(Decimal(2 * i) / head_dim) * log_theta).exp()
                self._frequencies.append(int(frequency * (1 << _SHIFT)))
        self._levels = [self._powers(1), self._powers(64), self._powers(4096)]
        self._cos = torch.empty(0, head_dim // 2)
        self._sin = torch.empty(0, head_dim // 2)

    def _powers(self, stride: int, count: int = 64) -> np.ndarray:
        """int64 [2, count, head_dim/2]: cos and sin at 0, stride, 2·stride, … with 30 bits."""
        table = np.zeros((2, count, len(self._frequencies)), dtype=np.int64)
        for column, frequency in enumerate(self._frequencies):
            step = _fixed_cos_sin(frequency)
            for _ in range(stride.bit_length() - 1):  # squaring doubles the angle
                cos, sin = step
                step = (cos * cos - sin * sin) >> _SHIFT, (2 * cos * sin) >> _SHIFT
            cos, sin = 1 << _SHIFT, 0
            for row in range(count):
                table[:, row, column] = cos >> (_SHIFT - self._BITS), sin >> (_SHIFT - self._BITS)
                cos, sin = (
                    (cos * step[0] - sin * step[1]) >> _SHIFT,
                    (sin * step[0] + cos * step[1]) >> _SHIFT,
                )
        return table

    def _extend(self, positions: int) -> None:
        p = np.arange(positions, dtype=np.int64)
        if positions > 64 * self._levels[2].shape[1] * 64:
            self._levels[2] = self._powers(4096, -(-positions // 4096))
        cos, sin = self._levels[0][:, p % 64]
        for level, index in ((1, p // 64 % 64), (2, p // 4096)):
            c, s = self._levels[level][:, index]
            cos, sin = (cos * c - sin * s) >> self._BITS, (sin * c + cos * s) >> self._BITS
        unit = np.float32(2.0**-self._BITS)
        self._cos = torch.from_numpy(cos.astype(np.float32) * unit)
        self._sin = torch.from_numpy(sin.astype(np.float32) * unit)

    def at(self, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each float32 [count, head_dim/2], of positions start … start + count - 1."""
        if start + count > len(self._cos):
            self._extend(max(2048, 1 << (start + count - 1).bit_length()))
        return self._cos[start : start + count], self._sin[start : start + count]
