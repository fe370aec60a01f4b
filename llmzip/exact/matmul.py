"""Exact matrix products of 8-bit integers, by the fastest instruction that the processor has.

`byte_products` (VNNI, of 512 or 256 bits) come first, then `word_products` (AVX2); with neither,
products are left to torch and to numba's loops. All give the same sums. Chosen once, when it is
imported; numba caches compiled code by processor.

Those whose names end with `into` allocate nothing, and so count no references. They overwrite
a buffer, int32 [≥ R · K / 2] for `multiply_into`, and [≥ R · n / 2] for the n values of `sum_into`.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled
from llmzip.exact import byte_products, word_products

if byte_products.available():
    from llmzip.exact.byte_products import (
        INSTRUCTION,
        KEY_TYPE,
        multiply_into,
        pack,
        put_key,
        sum_into,
    )
else:
    from llmzip.exact.word_products import (
        INSTRUCTION,
        KEY_TYPE,
        multiply_into,
        pack,
        put_key,
        sum_into,
    )

__all__ = ["GROUP", "INSTRUCTION", "KEY_TYPE", "LANES", "MULTIPLE", "available", "fits",
           "multiply", "multiply_into", "pack", "put_key", "sum_into"]  # fmt: skip

LANES = INSTRUCTION.lanes  # outputs, or keys, that are stored side by side,
GROUP = INSTRUCTION.group  # and inputs, or values
MULTIPLE = INSTRUCTION.multiple  # outputs come in multiples of it; so do keys in a cache


def available() -> bool:
    """Whether the processor has one of the instructions."""
    return byte_products.available() or word_products.available()


def fits(weight: np.ndarray) -> bool:
    """Whether int8 weights [N, K] can be packed."""
    outputs, inputs = weight.shape
    return bool(outputs % MULTIPLE == 0 and inputs % GROUP == 0)


@compiled
def multiply(q: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """int8 [R, K] · packed weights → int32 [R, N]."""
    rows, inputs = q.shape
    buffer = np.empty(rows * (inputs + 1) // 2, dtype=np.int32)
    total = np.empty((rows, weight.shape[0] * LANES), dtype=np.int32)
    multiply_into(q, weight, buffer, total)
    return total
