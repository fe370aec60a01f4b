"""How many threads pay for a given amount of work, measured. No result depends on it.

On a machine that is busy otherwise, threads that wait for each other after every operation can
be a hundred times slower than one alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

_ROUNDS = 6
_WORSE = 1.5  # threads that disturb each other are slower by far more than this


@contextlib.contextmanager
def threads_that_pay(rows: int, width: int) -> Iterator[None]:
    """Within: one thread, if several make layers of `width` over `rows` tokens much slower."""
    before = torch.get_num_threads()
    if before > 1:
        many = _seconds(rows, width)
        torch.set_num_threads(1)
        if _seconds(rows, width) * _WORSE > many:
            torch.set_num_threads(before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(rows: int, width: int) -> float:
    """Of a few products and the elementwise work between them, in the mean: stalls count."""
    x = torch.ones(min(rows, 256), width)
    weight = torch.zeros(4 * width, width)
    y = x @ weight.T  # threads start, memory is touched
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        torch.matmul(x, weight.T, out=y)
        y.mul_(0.5).round_().abs_()
    return time.perf_counter() - start
