"""Integer tables of the memory: logistic function, its inverse, logarithm. No libm.

Probabilities have 16 bits; "logits" are natural logarithms of odds in units of 1/256.
"""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np

LOGIT_LIMIT = 3071  # ±12 nats
PROBABILITY = 1 << 16


def _squash() -> np.ndarray:
    """int64: 2^16 / (1 + e^(-x/256)) at x = -3072 … 3071, kept 8 away from 0 and 2^16."""
    with localcontext() as context:
        context.prec = 40
        decay = (Decimal(-1) / 256).exp()
        power, half = Decimal(1), []
        for _ in range(LOGIT_LIMIT + 2):
            half.append(int((PROBABILITY / (1 + power)).to_integral_value()))
            power *= decay
    upper = np.array(half, dtype=np.int64)
    lower = PROBABILITY - upper
    both: np.ndarray = np.concatenate([lower[:0:-1], upper[:-1]])
    return both.clip(8, PROBABILITY - 8)


def _log2() -> np.ndarray:
    """int64: floor of 2^12 · log2(1 + i / 4096), by squaring."""
    y = (np.arange(4096, dtype=np.uint64) + 4096) << np.uint64(19)  # 1 is 2^31
    result = np.zeros(4096, dtype=np.int64)
    for _ in range(12):
        y = y * y >> np.uint64(31)
        bit = y >> np.uint64(32)
        result = result * 2 + bit.astype(np.int64)
        y >>= bit
    return result


SQUASH = _squash()
# logit of a 12-bit probability: where the logistic function reaches its middle
STRETCH = np.searchsorted(SQUASH, np.arange(4096) * 16 + 8) - (LOGIT_LIMIT + 1)
LOG2 = _log2()
# shares by which an estimate moves that n observations went into, 2^16 / (n + 1.6)
SHARES = (10 * PROBABILITY) // (10 * np.arange(256, dtype=np.int64) + 16)
