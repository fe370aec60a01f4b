"""What a frame's streams have said so far → better weights for what they say next.

`recall`: ids → candidates and evidence. `mix`: candidates' weights in the language model →
weights, by what the evidence was worth so far. `place`: those weights into rows and columns.
`tables`: logarithms. Knows nothing of logits, and of who asks: encoder or decoder.
"""

from llmzip.memory.mix import Mixer
from llmzip.memory.place import place_in_columns, place_in_rows
from llmzip.memory.recall import CANDIDATES, SOURCES, Recall

VERSION = 1  # stands in the header's profile

__all__ = [
    "CANDIDATES",
    "SOURCES",
    "VERSION",
    "Mixer",
    "Recall",
    "place_in_columns",
    "place_in_rows",
]
