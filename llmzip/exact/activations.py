"""Tables of gates: an activation function is x · gate(x).

To add one, name it in `GATES` and give its gate in `_gate_values`.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, localcontext
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from llmzip.exact.tables import DIGITS, FRACTION_BITS, pi

if TYPE_CHECKING:
    from torch import Tensor

GATE_STEP_BITS = 10  # gates are tabulated at multiples of 1/1024
GATE_RANGE = 16  # between -16 and 16
GATES = ("silu", "gelu", "gelu_tanh", "quick_gelu")
_GATE_FLOOR = Decimal(1) / (1 << 64)


@cache
def gate_table(gate: str) -> Tensor:
    """`gate_array` as a tensor, always the same one."""
    import torch

    return torch.from_numpy(gate_array(gate))


@cache
def gate_array(gate: str) -> np.ndarray:
    """float32 [2 · 16 · 1024 + 1]: the gate at x = i / 1024, i = -16·1024 … 16·1024.

    silu: 1 / (1 + e^-x). gelu: Φ(x), the normal distribution (Hendrycks and Gimpel, 2016).
    gelu_tanh: 1 / (1 + e^-2z) with z = √(2/π)·(x + 0.044715·x³), which is (1 + tanh z) / 2.
    quick_gelu: 1 / (1 + e^-1.702x). The ends are 0 and 1. Entries below 2^-64 are 0, except in
    silu, whose table is the oldest.
    """
    with localcontext() as context:
        context.prec = 40
        size = GATE_RANGE << GATE_STEP_BITS
        positive = np.ones(size + 1, dtype=np.float32)
        negative = np.zeros(size + 1, dtype=np.float32)
        values = np.array([(float(a), float(b)) for a, b in _gate_values(gate, size)])
        positive[: len(values)], negative[: len(values)] = values.T
    return np.concatenate([negative[:0:-1], positive])


def _gate_values(gate: str, size: int) -> Iterator[tuple[Decimal | float, Decimal | float]]:
    """(gate at i / 1024, gate at -i / 1024) for i from 0, until the second one is 0."""
    step = Decimal(1) / (1 << GATE_STEP_BITS)
    if gate == "gelu":
        yield from _normal_distribution(size)
        return
    if gate == "silu":
        yield from _logistic(size)
        return
    slope = Decimal("1.702") if gate == "quick_gelu" else 2 * (2 / pi()).sqrt()
    cubic = 0 if gate == "quick_gelu" else Decimal("0.044715")
    for i in range(size):
        x = i * step
        power = (-slope * (x + cubic * x * x * x)).exp()
        if power < _GATE_FLOOR:
            return
        sigmoid = 1 / (1 + power)
        yield sigmoid, power * sigmoid


def _logistic(size: int) -> Iterator[tuple[float, float]]:
    """1 / (1 + e^∓x) at x = i / 1024 in fixed point; e^-x is a power of e^(-1/1024)."""
    unit = 1 << FRACTION_BITS
    decay, power = int((Decimal(-1) / (1 << GATE_STEP_BITS)).exp() * unit), unit
    for _ in range(size):
        yield unit / (unit + power), power / (unit + power)
        power = power * decay >> FRACTION_BITS


def _normal_distribution(size: int) -> Iterator[tuple[Decimal, Decimal]]:
    """(Φ(x), Φ(-x)) at x = i / 1024 in fixed point, each from the last by Taylor's series:
    Φ(x + h) = Φ(x) + φ(x) · Σ (-1)^n · He_n(x) · h^(n + 1) / (n + 1)!, He_n the probabilists'
    Hermite polynomials."""
    h = GATE_STEP_BITS
    bits, unit = FRACTION_BITS, 1 << FRACTION_BITS
    with localcontext() as context:
        context.prec = DIGITS
        density = int(unit / (2 * pi()).sqrt())  # φ(0)
        ratio = int((Decimal(-1) / (1 << (2 * h + 1))).exp() * unit)  # φ(x + h) / φ(x) at 0
        decay = int((Decimal(-1) / (1 << (2 * h))).exp() * unit)  # of that ratio, per step
    tail = unit >> 1  # Φ(-x)
    for i in range(size):
        if tail < unit >> 64:
            return
        yield Decimal(unit - tail) / unit, Decimal(tail) / unit
        x = i << (bits - h)
        hermite, previous, gain, factorial = unit, 0, 0, 1
        for n in range(16):
            factorial *= n + 1
            term = (hermite >> (h * (n + 1))) // factorial
            gain += -term if n & 1 else term
            hermite, previous = (x * hermite >> bits) - n * previous, hermite
        tail -= density * gain >> bits
        density, ratio = density * ratio >> bits, ratio * decay >> bits
