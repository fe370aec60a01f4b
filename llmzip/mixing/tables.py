"""Integer tables of the mixing: logistic function, its inverse, logarithm. No libm.

Probabilities have 16 bits; "logits" are natural logarithms of odds in units of 1/256.
"""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np

LOGIT_LIMIT = 3071  # ±12 nats
PROBABILITY_BITS = 16
_ONE = 1 << PROBABILITY_BITS


def _squash() -> np.ndarray:
    """2^16 / (1 + e^(-x/256)) at x = -3072 … 3071, kept 8 away from 0 and 2^16."""
    with localcontext() as context:
        context.prec = 40
        decay = (Decimal(-1) / 256).exp()
        power, half = Decimal(1), []
        for _ in range(LOGIT_LIMIT + 2):
            half.append(int((_ONE / (1 + power)).to_integral_value()))
            power *= decay
    upper = np.array(half, dtype=np.int32)
    both: np.ndarray = np.concatenate([(_ONE - upper)[:0:-1], upper[:-1]])
    return both.clip(8, _ONE - 8)


def _log2() -> np.ndarray:
    """floor of 2^12 · log2(1 + i / 4096), by squaring."""
    y = (np.arange(4096, dtype=np.uint64) + 4096) << np.uint64(19)  # 1 is 2^31
    result = np.zeros(4096, dtype=np.int32)
    for _ in range(12):
        y = y * y >> np.uint64(31)
        bit = y >> np.uint64(32)
        result = result * 2 + bit.astype(np.int32)
        y >>= bit
    return result


SQUASH = _squash()  # int32 [6144], of logit + 3072
# int32 [4096]: logit of a 12-bit probability, where the logistic function reaches its middle
STRETCH = (np.searchsorted(SQUASH, np.arange(4096) * 16 + 8) - (LOGIT_LIMIT + 1)).astype(np.int32)
LOG2 = _log2()  # int32 [4096]
# int32 [1024]: how far a probability that n observations shaped moves, 2^16 / (n + 1.6)
SHARES = ((10 * _ONE) // (10 * np.arange(1024) + 16)).astype(np.int32)
