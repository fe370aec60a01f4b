"""Token ids so far → logits of the next token.

`base`: the interface of a predictor. `building`: the predictor of a model. `compiled_predictor`: the
same bits on every machine, without torch; `exact_predictor`: likewise, for all models and devices.
`float_predictor`: any causal model in floating point, for one environment. `frequencies`: logits →
integer frequencies for the entropy coder.
"""

from llmzip.inference.base import Context, Predictor, Run
from llmzip.inference.building import DEFAULT_ACTIVATIONS, build, default_context

__all__ = ["DEFAULT_ACTIVATIONS", "Context", "Predictor", "Run", "build", "default_context"]
