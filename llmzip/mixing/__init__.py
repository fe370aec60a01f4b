"""What a frame's streams have said so far → better weights for what they say next.

`recall`: ids → candidates and evidence. `mix`: candidates' weights in the language model →
weights, by what the evidence was worth so far. `place`: those weights into rows and columns.
`tables`: logarithms. Knows nothing of logits, and of who asks: encoder or decoder.
"""

from __future__ import annotations

import numpy as np

from llmzip.mixing.mix import Mixer, blank, prior
from llmzip.mixing.place import place_in_columns, place_in_rows
from llmzip.mixing.recall import CANDIDATES, MATCH, SOURCES, Recall, kinds

__all__ = [
    "CANDIDATES",
    "MATCH",
    "SOURCES",
    "Mixer",
    "Recall",
    "begin",
    "blank",
    "kinds",
    "place_in_columns",
    "place_in_rows",
    "prior",
]


def begin(streams: int, steps: int, kinds: np.ndarray) -> tuple[Recall, Mixer]:
    """The memory of a frame of S streams of at most T ids, whose `kinds` are uint8 [V]."""
    return Recall(streams, steps, kinds), Mixer(streams, prior())
