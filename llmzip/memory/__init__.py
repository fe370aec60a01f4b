"""What a frame's streams have said so far → better weights for what they say next.

`recall`: ids → candidates and evidence. `mix`: candidates' weights in the language model →
weights, by what the evidence was worth so far. `place`: those weights into rows and columns.
`tables`: logarithms. `recall1` is for archives of memory version 1 alone. Knows nothing of logits,
and of who asks: encoder or decoder.
"""

from __future__ import annotations

import numpy as np

from llmzip.memory import recall1
from llmzip.memory.mix import PRIOR, Mixer, blank, prior
from llmzip.memory.place import place_in_columns, place_in_rows
from llmzip.memory.recall import CANDIDATES, MATCH, SOURCES, Recall, Recaller, kinds

VERSION = 2  # stands in the header's profile

__all__ = [
    "CANDIDATES",
    "MATCH",
    "SOURCES",
    "VERSION",
    "Mixer",
    "Recall",
    "Recaller",
    "begin",
    "blank",
    "kinds",
    "place_in_columns",
    "place_in_rows",
    "prior",
]


def begin(version: int, streams: int, steps: int, kinds: np.ndarray) -> tuple[Recaller, Mixer]:
    """The memory of a frame of S streams of at most T ids, whose `kinds` are uint8 [V]."""
    if version == 1:
        state = prior(PRIOR.with_name("prior1.json"))
        return recall1.Recall(streams, steps), Mixer(streams, state, recall1.CANDIDATES)
    return Recall(streams, steps, kinds), Mixer(streams, prior())
