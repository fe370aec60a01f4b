"""Constants → tables of float32 / int32, computed without libm.

Every entry comes from Python integers or from `decimal` (whose ln and exp are correctly
rounded), so that a table is the same on every machine. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np
import torch

_DIGITS = 60  # of decimal working precision; tables need at most 16
_SHIFT = 160  # fractional bits of the integer sines

EXP2_STEP_BITS = 10  # attention: scores are rounded to 1/1024 octave
EXP2_OCTAVES = 16  # and weights die out 16 octaves below the maximum
EXP2_UNIT_BITS = 16  # the largest weight is 2^16
EXP2_CUTOFF = EXP2_OCTAVES << EXP2_STEP_BITS

GATE_STEP_BITS = 10  # gates of activations are tabulated at multiples of 1/1024
GATE_RANGE = 16  # between -16 and 16
_GATE_FLOOR = Decimal(1) / (1 << 64)


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
def score_scale(scaling: float) -> float:
    """log2(e) · scaling · 2^10: from a raw attention score to table steps, float32.

    A scaling is mostly 1 / √n for a whole n; then it is taken as that, since a power computed
    by a C library may be off in its last bit.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        exact = Decimal(scaling)
        n = round(1 / (scaling * scaling)) if 2.0**-24 < scaling < 2.0**24 else 0
        if n and abs(scaling * scaling * n - 1) < 1e-12:
            exact = 1 / Decimal(n).sqrt()
        return nearest_float32(Decimal(1 << EXP2_STEP_BITS) * exact / Decimal(2).ln())


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


GATES = ("silu", "gelu", "gelu_tanh", "quick_gelu")


@cache
def gate_table(kind: str) -> torch.Tensor:
    """float32: what an activation multiplies x with, at x = i / 1024, i = -16·1024 … 16·1024.

    silu: 1 / (1 + e^-x). gelu: Φ(x), the normal distribution (Hendrycks and Gimpel, 2016).
    gelu_tanh: 1 / (1 + e^-2z) with z = √(2/π)·(x + 0.044715·x³), which is (1 + tanh z) / 2.
    quick_gelu: 1 / (1 + e^-1.702x). 0 and 1 at the ends; but for silu, whose table is the
    oldest, what is below 2^-64 is 0.
    """
    with localcontext() as context:
        context.prec = 40
        reach = GATE_RANGE << GATE_STEP_BITS
        positive = np.ones(reach + 1, dtype=np.float32)
        negative = np.zeros(reach + 1, dtype=np.float32)
        for i, (share, rest) in enumerate(_gate_shares(kind, reach)):
            positive[i], negative[i] = np.float32(float(share)), np.float32(float(rest))
    return torch.from_numpy(np.concatenate([negative[:0:-1], positive]))


def _gate_shares(kind: str, reach: int) -> Iterator[tuple[Decimal, Decimal]]:
    """(gate at i / 1024, gate at -i / 1024) for i from 0, until the second one is 0."""
    step = Decimal(1) / (1 << GATE_STEP_BITS)
    if kind == "gelu":
        yield from _normal_shares(reach)
        return
    if kind == "silu":  # e^-x at the i-th step is decay^i: one product instead of one exp
        decay, power = (-step).exp(), Decimal(1)
        for _ in range(reach):
            share = 1 / (1 + power)
            yield share, power * share
            power *= decay
        return
    slope = Decimal("1.702") if kind == "quick_gelu" else 2 * (2 / _pi()).sqrt()
    cubic = 0 if kind == "quick_gelu" else Decimal("0.044715")
    for i in range(reach):
        x = i * step
        power = (-slope * (x + cubic * x * x * x)).exp()
        if power < _GATE_FLOOR:
            return
        share = 1 / (1 + power)
        yield share, power * share


def _normal_shares(reach: int) -> Iterator[tuple[Decimal, Decimal]]:
    """(Φ(x), Φ(-x)) at x = i / 1024 in integers, each from the last by Taylor's series:
    Φ(x + h) = Φ(x) + φ(x) · Σ (-1)^n · He_n(x) · h^(n + 1) / (n + 1)!"""
    h = GATE_STEP_BITS
    unit = 1 << _SHIFT
    with localcontext() as context:
        context.prec = _DIGITS
        density = int(unit / (2 * _pi()).sqrt())  # φ(0)
        ratio = int((Decimal(-1) / (1 << (2 * h + 1))).exp() * unit)  # φ(x + h) / φ(x) at 0
        decay = int((Decimal(-1) / (1 << (2 * h))).exp() * unit)  # of that ratio, a step
    rest = unit >> 1  # Φ(-x)
    for i in range(reach):
        if rest < unit >> 64:
            return
        yield Decimal(unit - rest) / unit, Decimal(rest) / unit
        x = i << (_SHIFT - h)
        hermite, before, gain, factorial = unit, 0, 0, 1
        for n in range(16):
            factorial *= n + 1
            term = (hermite >> (h * (n + 1))) // factorial
            gain += -term if n & 1 else term
            hermite, before = (x * hermite >> _SHIFT) - n * before, hermite
        rest -= density * gain >> _SHIFT
        density, ratio = density * ratio >> _SHIFT, ratio * decay >> _SHIFT


@cache
def _pi() -> Decimal:
    """π to the digits of the tables, by Machin's formula."""
    one = 10 ** (_DIGITS + 10)

    def arctangent(inverse: int) -> int:
        term: int = one // inverse
        total = term
        n, sign = 1, 1
        while term:
            term //= inverse * inverse
            n, sign = n + 2, -sign
            total += sign * (term // n)
        return total

    with localcontext() as context:
        context.prec = _DIGITS
        return Decimal(16 * arctangent(5) - 4 * arctangent(239)) / Decimal(one)


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


def rotary_frequencies(rope: Mapping[str, Any], dim: int) -> list[Decimal]:
    """Radians a position of the `dim` / 2 pairs: theta^(-2i / dim) (Su et al., 2021), scaled as
    `rope_type` says: "default", "linear" or "llama3" (Llama 3.1's interpolation by parts).

    Raises ValueError for other types, KeyError for missing parameters.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    with localcontext() as context:
        context.prec = _DIGITS
        log_theta = Decimal(rope["rope_theta"]).ln()
        plain = [(-(Decimal(2 * i) / dim) * log_theta).exp() for i in range((dim + 1) // 2)]
        if kind == "default":
            return plain
        if kind not in ("linear", "llama3"):
            raise ValueError(f"rotary embedding of type {kind!r} has no exact form")
        factor = Decimal(rope["factor"])
        if kind == "linear":
            return [frequency / factor for frequency in plain]
        low, high = Decimal(rope["low_freq_factor"]), Decimal(rope["high_freq_factor"])
        trained = Decimal(rope["original_max_position_embeddings"])

        def scaled(frequency: Decimal) -> Decimal:
            turns = trained * frequency / (2 * _pi())  # in the context it was trained with
            share = min(Decimal(1), max(Decimal(0), (turns - low) / (high - low)))
            return (1 - share) * frequency / factor + share * frequency

        return [scaled(frequency) for frequency in plain]


class RotaryTable:
    """cos and sin of position · frequency, float32, for as many positions as asked for.

    Angles are added by multiplying unit complex numbers in integers: position =
    a·4096 + b·64 + c takes three factors of 30 fractional bits from three small tables,
    which themselves come from integers of 160 bits. Frequencies are below 2 radians.
    """

    _BITS = 30

    def __init__(self, frequencies: Sequence[Decimal]) -> None:
        with localcontext() as context:
            context.prec = _DIGITS
            self._frequencies = [int(frequency * (1 << _SHIFT)) for frequency in frequencies]
        self._levels = [self._powers(1), self._powers(64), self._powers(4096)]
        self._table = (torch.empty(0, len(frequencies)), torch.empty(0, len(frequencies)))

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
        # assigned at once, as threads may share the table
        self._table = (
            torch.from_numpy(cos.astype(np.float32) * unit),
            torch.from_numpy(sin.astype(np.float32) * unit),
        )

    def at(self, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each float32 [count, head_dim/2], of positions start … start + count - 1."""
        if start + count > len(self._table[0]):
            self._extend(max(2048, 1 << (start + count - 1).bit_length()))
        cos, sin = self._table
        return cos[start : start + count], sin[start : start + count]
