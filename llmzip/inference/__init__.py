"""Token ids so far → logits of the next token.

`base`: the interface of a predictor. `exact_predictor`: the same bits on every machine.
`float_predictor`: any causal model in floating point, for one environment. `frequencies`,
`gpu_frequencies`: logits → integer frequencies for the entropy coder.
"""

from llmzip.inference.base import Context, Predictor, Run
from llmzip.inference.exact_predictor import (
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
    "build",
    "default_context",
]
