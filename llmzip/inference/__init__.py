"""Token ids so far → logits of the next token.

`base`: the interface of a predictor. `building`: the predictor of a model. `exact_predictor`: the
same bits on every machine; `compiled_predictor`: likewise, without torch, for most int8 models.
`float_predictor`: any causal model in floating point, for one environment. `frequencies`: logits →
integer frequencies for the entropy coder.
"""

from llmzip.inference.base import Context, Predictor, Run
from llmzip.inference.building import DEFAULT_ACTIVATIONS, build, default_context

__all__ = ["DEFAULT_ACTIVATIONS", "Context", "Predictor", "Run", "build", "default_context"]
