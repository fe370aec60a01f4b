"""What is read next, fetched into the second cache during other work.

A processor fetches by itself only what follows in memory, and only while it waits for it. Steps of
few rows read each key and value once, which takes as long as the work on them. A plan, int64 [4],
says what is fetched: the address of the next line of one part, where that part ends (0: nothing is
planned), the distance to a second part, of which the same lines are fetched, and how many lines of
each at a time, as those that a processor waits for at once are few.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import inlined, inlined_in_place, prefetch_far

LINE = 64  # bytes of a line of the cache


@inlined
def nothing() -> np.ndarray:
    """A plan to fetch nothing."""
    plan = np.empty(4, dtype=np.int64)  # zeros take longer to compile
    plan[0] = plan[1] = plan[2] = plan[3] = 0
    return plan


@inlined_in_place
def fetch(plan: np.ndarray) -> None:
    """Fetch some lines."""
    at, apart = plan[0], plan[2]
    end = min(plan[1], at + plan[3] * LINE)
    while at < end:
        prefetch_far(at)
        prefetch_far(at + apart)
        at += LINE
    plan[0] = at


@inlined_in_place
def fetch_rest(plan: np.ndarray) -> None:
    """Fetch what is left of the plan, which ends."""
    plan[3] = plan[1] - plan[0]
    fetch(plan)
    plan[1] = 0


@inlined_in_place
def take(plan: np.ndarray, size: int, otherwise: int, apart: int) -> tuple[int, int]:
    """The address from which a tile is to fetch `size` bytes, and the distance to the next part,
    from which it fetches as many: as planned, or what is given if nothing is."""
    if plan[1] == 0:
        return otherwise, apart
    far = plan[0]
    plan[0] = min(far + size, plan[1])
    return far, plan[2]
