"""Constants and tables of exp2, computed without the C library's math functions.

Every entry comes from Python integers or from `decimal`, whose ln, exp and sqrt are correctly
rounded, so a table is the same on every machine.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = 60  # decimal working precision; tables need at most 16
FRACTION_BITS = 160  # of fixed-point intermediate results

EXP2_STEP_BITS = 10  # attention: scores are rounded to 1/1024 octave
EXP2_OCTAVES = 16  # and weights vanish 16 octaves below the maximum
EXP2_UNIT_BITS = 16  # the largest weight is 2^16
EXP2_CUTOFF = EXP2_OCTAVES << EXP2_STEP_BITS
# 2^16 · 2^(-t / 1024) by powers of t - EXP2_CENTER, ascending. In float32, by Horner's scheme, and
# rounded, it is the table's integer for each t below 1,024, whether or not multiplications and
# additions are fused. Its constant is whole, so that adding it can round, too.
EXP2_CENTER = 445
EXP2_POLYNOMIAL = (
    48491.0,
    -32.82360076904297,
    0.011109397746622562,
    -2.5076130896195536e-06,
    4.241376971858557e-10,
    -5.2185726985391756e-14,
)


def nearest_float32(value: Decimal) -> float:
    """The float32 nearest to `value`, as a Python float."""
    return float(np.float32(float(value)))


@cache
def log2e_times(scale: int) -> float:
    """log2(e) · `scale`, rounded to float32."""
    with localcontext() as context:
        context.prec = DIGITS
        return nearest_float32(scale / Decimal(2).ln())


@cache
def score_scale(scaling: float) -> float:
    """log2(e) · scaling · 2^10: raw attention score → table steps, float32.

    Most scalings are 1 / √n for an integer n; these are computed from n, since a power from a
    C library may be off in its last bit.
    """
    with localcontext() as context:
        context.prec = DIGITS
        exact = Decimal(scaling)
        n = round(1 / (scaling * scaling)) if 2.0**-24 < scaling < 2.0**24 else 0
        if n and abs(scaling * scaling * n - 1) < 1e-12:
            exact = 1 / Decimal(n).sqrt()
        return nearest_float32(Decimal(1 << EXP2_STEP_BITS) * exact / Decimal(2).ln())


@cache
def exp2_mantissas(step_bits: int, unit_bits: int) -> np.ndarray:
    """round(2^unit_bits · 2^(-i / 2^step_bits)) for i = 0 … 2^step_bits - 1, int64."""
    steps = 1 << step_bits
    with localcontext() as context:
        context.prec = DIGITS
        exponents = (unit_bits - Decimal(i) / steps for i in range(steps))
        entries = [int((e * Decimal(2).ln()).exp().to_integral_value()) for e in exponents]
    return np.array(entries, dtype=np.int64)


def exp2_table(step_bits: int, unit_bits: int, octaves: int) -> np.ndarray:
    """M[t mod 2^step_bits] >> (t div 2^step_bits) for all t below `octaves` octaves, int64."""
    mantissas = exp2_mantissas(step_bits, unit_bits)
    return np.concatenate([mantissas >> octave for octave in range(octaves)])


@cache
def attention_weights() -> Tensor:
    """int32 [EXP2_CUTOFF + 1]: the weight of a key `t` steps below the best; the last is 0."""
    import torch

    table = exp2_table(EXP2_STEP_BITS, EXP2_UNIT_BITS, EXP2_OCTAVES)
    return torch.from_numpy(np.append(table, 0).astype(np.int32))


@cache
def pi() -> Decimal:
    """π to `DIGITS` digits, by Machin's formula."""
    one = 10 ** (DIGITS + 10)

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
        context.prec = DIGITS
        return Decimal(16 * arctangent(5) - 4 * arctangent(239)) / Decimal(one)
