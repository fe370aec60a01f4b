"""Rotary position embedding (Su et al., 2021): frequencies, and tables of cos and sin.

To add a scaling of frequencies, add a case to `_frequencies`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from llmzip.errors import UnsupportedModel
from llmzip.exact.tables import DIGITS, FRACTION_BITS, pi

if TYPE_CHECKING:
    from torch import Tensor

_BITS = 30  # fractional bits of cos and sin


def rotary_frequencies(rope: Mapping[str, Any], dim: int) -> list[Decimal]:
    """Radians per position of the `dim` / 2 pairs: theta^(-2i / dim), scaled as `rope_type` says:
    "default", "linear" or "llama3" (Llama 3.1's interpolation by parts).

    `rope`: the rope_parameters of a config.json. Raises UnsupportedModel for other types and
    missing or malformed parameters.
    """
    with localcontext() as context:
        context.prec = DIGITS
        try:
            return _frequencies(rope, dim)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise UnsupportedModel(f"rotary parameters are malformed: {error!r}") from None


def _frequencies(rope: Mapping[str, Any], dim: int) -> list[Decimal]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    log_theta = Decimal(rope["rope_theta"]).ln()
    unscaled = [(-(Decimal(2 * i) / dim) * log_theta).exp() for i in range((dim + 1) // 2)]
    if kind == "default":
        return unscaled
    if kind not in ("linear", "llama3"):
        raise UnsupportedModel(f"rotary embedding of type {kind!r} has no exact form")
    factor = Decimal(rope["factor"])
    if kind == "linear":
        return [frequency / factor for frequency in unscaled]
    low, high = Decimal(rope["low_freq_factor"]), Decimal(rope["high_freq_factor"])
    trained = Decimal(rope["original_max_position_embeddings"])

    def scaled(frequency: Decimal) -> Decimal:
        turns = trained * frequency / (2 * pi())  # within the context window of training
        share = min(Decimal(1), max(Decimal(0), (turns - low) / (high - low)))
        return (1 - share) * frequency / factor + share * frequency

    return [scaled(frequency) for frequency in unscaled]


class RotaryTable:
    """cos and sin of position · frequency, float32, for any number of positions.

    Angles are added by multiplying unit complex numbers in fixed point: position =
    a·4096 + b·64 + c takes three factors of 30 fractional bits from three small tables, which are
    computed with 160 bits. Frequencies are below 2 radians.
    """

    def __init__(self, frequencies: Sequence[Decimal]) -> None:
        with localcontext() as context:
            context.prec = DIGITS
            self._frequencies = [int(frequency * (1 << FRACTION_BITS)) for frequency in frequencies]
        self._factors = [self._powers(1), self._powers(64), self._powers(4096)]
        self._table = (np.empty((0, len(frequencies)), np.float32),) * 2

    def cos_sin(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """`arrays` as tensors."""
        import torch

        cos, sin = self.arrays(start, count)
        return torch.from_numpy(cos), torch.from_numpy(sin)

    def arrays(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(cos, sin), each float32 [count, head_dim/2], of positions start … start + count - 1."""
        cos, sin = self._table  # one look, and one assignment: threads may share the table
        if start + count > len(cos):
            cos, sin = self.compute(0, max(2048, 1 << (start + count - 1).bit_length()))
            self._table = cos, sin
        return cos[start : start + count], sin[start : start + count]

    def _powers(self, stride: int, count: int = 64) -> np.ndarray:
        """int64 [2, count, head_dim/2]: cos and sin at 0, stride, 2·stride, … with 30 bits."""
        table = np.zeros((2, count, len(self._frequencies)), dtype=np.int64)
        for column, frequency in enumerate(self._frequencies):
            step = _fixed_cos_sin(frequency)
            for _ in range(stride.bit_length() - 1):  # squaring doubles the angle
                cos, sin = step
                step = (cos * cos - sin * sin) >> FRACTION_BITS, (2 * cos * sin) >> FRACTION_BITS
            cos, sin = 1 << FRACTION_BITS, 0
            for row in range(count):
                drop = FRACTION_BITS - _BITS
                table[:, row, column] = cos >> drop, sin >> drop
                cos, sin = (
                    (cos * step[0] - sin * step[1]) >> FRACTION_BITS,
                    (sin * step[0] + cos * step[1]) >> FRACTION_BITS,
                )
        return table

    def compute(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """`arrays` of positions that no one will ask for again: they are not kept."""
        p = np.arange(start, start + count, dtype=np.int64)
        if start + count > 4096 * self._factors[2].shape[1]:
            self._factors[2] = self._powers(4096, -(-(start + count) // 4096))
        cos, sin = self._factors[0][:, p % 64]
        for level, index in ((1, p // 64 % 64), (2, p // 4096)):
            c, s = self._factors[level][:, index]
            cos, sin = (cos * c - sin * s) >> _BITS, (sin * c + cos * s) >> _BITS
        unit = np.float32(2.0**-_BITS)
        return cos.astype(np.float32) * unit, sin.astype(np.float32) * unit


def _fixed_cos_sin(angle: int) -> tuple[int, int]:
    """cos and sin of angle / 2^FRACTION_BITS (0 ≤ angle < 2) by Taylor series in integers."""
    cos, sin, term, k = 0, 0, 1 << FRACTION_BITS, 0
    while term:
        sign = -1 if k & 2 else 1
        if k & 1:
            sin += sign * term
        else:
            cos += sign * term
        k += 1
        term = (term * angle >> FRACTION_BITS) // k
    return cos, sin
