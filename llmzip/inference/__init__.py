"""Token ids so far → logits of the next token.

`base`: what a predictor is. `exact`: the same bits everywhere. `plain`: any model as it is, for
one environment.
"""

from llmzip.inference.base import Context, Predictor, Run, TablePredictor
from llmzip.inference.predictor import (
    ARITHMETIC,
    DEFAULT_ACTIVATIONS,
    ExactPredictor,
    build,
    default_context,
)

__all__ = [
    "ARITHMETIC",
    "DEFAULT_ACTIVATIONS",
    "Context",
    "ExactPredictor",
    "Predictor",
    "Run",
    "TablePredictor",
    "build",
    "default_context",
]
