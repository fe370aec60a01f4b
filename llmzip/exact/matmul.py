"""Exact matrix products of 8-bit integers, by the fastest instruction that the processor has.

`byte_products` (VNNI of 512 or 256 bits, ARM's dot product) come first, then `word_products`
(AVX2); with neither, products are left to torch and to numba's loops. All give the same sums.
Chosen once, when it is imported; numba caches compiled code by processor.

Those whose names end with `into` allocate nothing, and so count no references. They overwrite
a buffer, int32 [≥ R · K / 2] for `multiply_into`, and [≥ R · n / 2] for the n values of `sum_into`.
Meanwhile they fetch what is planned (`ahead`); if nothing is, `multiply_into` fetches weights.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import compiled, compiled_in_place
from llmzip.exact import byte_products, word_products
from llmzip.exact.ahead import nothing

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
           "multiply_into", "multiply_share", "pack", "put_key", "share_of",
           "sum_into"]  # fmt: skip

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


@compiled_in_place
def share_of(outputs: int, number: int, count: int) -> tuple[int, int]:
    """The columns that thread `number` of `count` makes: from …, below …."""
    pairs = outputs // MULTIPLE
    first, last = pairs * number // count * MULTIPLE, pairs * (number + 1) // count * MULTIPLE
    return first, outputs if number + 1 == count else last


@compiled
def multiply_share(
    q: np.ndarray, weight: np.ndarray, total: np.ndarray, number: int, count: int
) -> None:
    """int8 [R, K] · packed weights → total int32 [R, N]; of its columns, those of thread `number`
    of `count`."""
    rows, inputs = q.shape
    buffer = np.empty(rows * (inputs + 1) // 2, dtype=np.int32)
    first, last = share_of(len(weight) * LANES, number, count)
    multiply_into(q, weight[first // LANES : last // LANES], buffer, total, first, nothing())
